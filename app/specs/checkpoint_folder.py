"""Whether a path can hold a checkpoint: asked by the form before a job, and by the job itself."""

from pathlib import Path

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def source_problem(source: Path) -> str | None:
    """Return why nothing can be registered from a path, naming the mend; None where it may be.

    Taken are a folder in transformers layout, a folder with one .gguf, and a .gguf file.
    """
    if source.is_file():
        if source.suffix == ".gguf":
            return None
        return f"{source} is no checkpoint. Give a folder or a .gguf file."
    if not source.is_dir():
        return f"{source} is not a folder or a .gguf file. Mend the path, or copy it there first."
    ggufs = len(list(source.glob("*.gguf"))) if not (source / "config.json").is_file() else 0
    if ggufs > 1:
        return f"{source} holds {ggufs} .gguf files. Give the path of the one you mean."
    return None if ggufs else folder_problem(source)


def folder_problem(folder: Path) -> str | None:
    """Return why a folder is none in transformers layout, naming the mend; None where it is."""
    if not folder.is_dir():
        return f"{folder} is not a folder. Register the checkpoint again."
    if not (folder / "config.json").is_file():
        return f"{folder} has no config.json. Take a folder in transformers layout."
    if any(folder.glob("*.safetensors")):
        return None
    pickles = [p.name for pattern in _PICKLES for p in sorted(folder.glob(pattern))]
    if pickles:
        return (
            f"{pickles[0]} in {folder} is a pickle file, which can run code when it is opened. "
            "Convert the weights to safetensors first."
        )
    return f"{folder} has no *.safetensors file. Add the weights."
