<<<<<<< HEAD
"""Snapshots of a training: whole or absent, verified before use, the newest good one resumes.

Order of publishing: temporary folder, files, manifest last, fsync, rename, fsync of the parent.
"""
=======
"""Snapshots of a training: whole and verified, or not there; the last two and the best are kept."""
>>>>>>> shell

import json
import random
import shutil
<<<<<<< HEAD
from collections.abc import Callable, Sequence
=======
from collections.abc import Mapping, Sequence
>>>>>>> shell
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from app.specs.fingerprint import canonical_json, file_sha256
<<<<<<< HEAD
from workers.distill.errors import SnapshotError
from workers.distill.files import atomic_folder, write_synced

MANIFEST = "manifest.json"
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_FORMAT = 1
=======
from workers.distill.callbacks import Callbacks
from workers.distill.checkpoints import load_weights, published, save_weights
from workers.distill.errors import SnapshotError

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
KEEP_LAST = 2
>>>>>>> shell


@dataclass(frozen=True, slots=True)
class SnapshotState:
<<<<<<< HEAD
    """What resuming needs beside tensors. step: optimiser steps done; cursor: the next one's data.

    tokens: input tokens seen so far; best_*: the best validation so far (None: none yet).
    """
=======
    """What state.json holds beside the random generators: where training stands."""
>>>>>>> shell

    step: int
    cursor: int
    spec_hash: str
<<<<<<< HEAD
    tokens: int = 0
    learning_rate: float = 0.0
    best_step: int | None = None
    best_value: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete snapshot folder; its manifest's SHA-256 names its content."""

    step: int
    folder: Path
    manifest_sha256: str


def snapshot_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def write_snapshot(root: Path, model: Any, optimizer: Any, state: SnapshotState) -> Snapshot:
    """Publish weights, optimiser, RNG states and `state` as root/step-N; return where it lies."""
    folder = snapshot_folder(root, state.step)
    facts = {
        "step": state.step,
        "cursor": state.cursor,
        "spec_hash": state.spec_hash,
        "tokens": state.tokens,
        "scheduler": {"last_step": state.step, "learning_rate": state.learning_rate},
        "best": {"step": state.best_step, "value": state.best_value},
        "rng": _rng_state(),
    }
    with atomic_folder(folder) as temporary:
        save_file(_unshared(model.state_dict()), str(temporary / _MODEL))
        save_file(_optimizer_tensors(optimizer), str(temporary / _OPTIMIZER))
        write_synced(temporary / _STATE, canonical_json(facts))
        files = {
            name: {
                "sha256": file_sha256(temporary / name),
                "bytes": (temporary / name).stat().st_size,
            }
            for name in (_MODEL, _OPTIMIZER, _STATE)
        }
        manifest = {
            "format": _FORMAT,
            "step": state.step,
            "spec_hash": state.spec_hash,
            "files": files,
        }
        write_synced(temporary / MANIFEST, canonical_json(manifest))
    return Snapshot(state.step, folder, file_sha256(folder / MANIFEST))


def verify_snapshot(folder: Path, manifest_sha256: str | None = None) -> dict[str, Any]:
    """Return the manifest, every file's size and SHA-256 having been checked.

    manifest_sha256: what the manifest itself must have, where a row remembers it.
    Errors: SnapshotError names the file that is missing or changed.
    """
    path = folder / MANIFEST
    if manifest_sha256 is not None and path.is_file() and file_sha256(path) != manifest_sha256:
        raise SnapshotError(f"{MANIFEST} of {folder.name} is changed.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        files: dict[str, dict[str, Any]] = manifest["files"]
        known = manifest["format"] == _FORMAT and isinstance(manifest["step"], int)
        wanted = {n: (int(f["bytes"]), str(f["sha256"])) for n, f in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(f"{folder.name} has no readable manifest: {error}") from error
    if not known or set(wanted) != {_MODEL, _OPTIMIZER, _STATE}:
        raise SnapshotError(f"{folder.name} is not a snapshot of this version.")
    for name, (size, digest) in wanted.items():
        part = folder / name
        if not part.is_file() or part.stat().st_size != size or file_sha256(part) != digest:
            raise SnapshotError(f"{name} of {folder.name} is missing or changed.")
    return manifest


def find_snapshot(
    places: Sequence[Path], spec_hash: str, log: Callable[[str, str], None]
) -> Snapshot | None:
    """Return the newest intact snapshot in `places` (snapshot folders, or folders of them).

    A damaged one is named through `log(text, level)` and the one before it is taken.
    Errors: SnapshotError where an intact one belongs to another spec.
    """
    found = [p for place in places for p in ([place] if _is_snapshot(place) else _children(place))]
    for folder in sorted(found, key=lambda p: (p.name, str(p)), reverse=True):
        try:
            manifest = verify_snapshot(folder)
        except SnapshotError as error:
            log(f"{error} Falling back to the snapshot before it.", "warning")
            continue
        if manifest["spec_hash"] != spec_hash:
            raise SnapshotError(
                f"{folder.name} was written for another spec. Start a new run instead of resuming."
            )
        return Snapshot(int(manifest["step"]), folder, file_sha256(folder / MANIFEST))
    return None


def load_snapshot(snapshot: Snapshot, model: Any, optimizer: Any) -> SnapshotState:
    """Put weights, optimiser and RNG states back; return the rest."""
    load_weights(snapshot.folder, model)
    _load_optimizer(optimizer, load_file(str(snapshot.folder / _OPTIMIZER)))
    facts = json.loads((snapshot.folder / _STATE).read_bytes())
    _set_rng_state(facts["rng"])
    return SnapshotState(
        step=facts["step"],
        cursor=facts["cursor"],
        spec_hash=facts["spec_hash"],
        tokens=facts["tokens"],
        learning_rate=facts["scheduler"]["learning_rate"],
        best_step=facts["best"]["step"],
        best_value=facts["best"]["value"],
    )


def load_weights(folder: Path, model: Any) -> None:
    """Put a verified snapshot's weights into a model of the same shape."""
    tensors = load_file(str(folder / _MODEL))
    with torch.no_grad():
        for name, value in _unshared(model.state_dict(keep_vars=True)).items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise SnapshotError(f"{folder.name} holds no {name} of shape {list(value.shape)}.")
            value.copy_(tensors[name])


def drop_old_snapshots(root: Path, best_step: int | None, keep: int = 2) -> None:
    """Delete all snapshots in `root` but the last `keep` and the best."""
    folders = sorted(_children(root), key=lambda p: p.name)
    spared = {p.name for p in folders[-keep:]}
    if best_step is not None:
        spared.add(snapshot_folder(root, best_step).name)
    for folder in folders:
        if folder.name not in spared:
            shutil.rmtree(folder)


def _is_snapshot(folder: Path) -> bool:
    return folder.name.startswith("step-")


def _children(root: Path) -> list[Path]:
    return [p for p in root.glob("step-*") if p.is_dir()]


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out names that share memory with an earlier one (a head tied to the embedding)."""
    seen: set[tuple[int, torch.Size]] = set()
    out = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or key not in seen:
            out[name] = tensor.contiguous()
        seen.add(key)
    return out


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: Any) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            out[f"{number}.{key}"] = value.detach().contiguous()
    return out


def _load_optimizer(optimizer: Any, tensors: dict[str, torch.Tensor]) -> None:
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        parameter = parameters[int(number)]
        place = value if key == "step" else value.to(parameter.device)
        optimizer.state[parameter][key] = place


def _rng_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - whoever uses the global generator must resume too
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
=======
    scheduler: dict[str, Any]
    progress: dict[str, Any]
    """Counters that the result reports: tokens, seconds, best step and value."""


def snapshot_folder(root: Path, step: int) -> Path:
    """Return where the snapshot after `step` steps lies; names sort by step."""
    return root / f"step-{step:08d}"


def snapshot_folders(root: Path) -> list[Path]:
    """Return the complete snapshot folders below `root`, newest first."""
    found = [p for p in root.glob("step-*") if (p / MANIFEST).is_file()] if root.is_dir() else []
    return sorted(found, key=lambda p: p.name, reverse=True)


def save_snapshot(
    root: Path, model: Any, optimizer: torch.optim.Optimizer, state: SnapshotState
) -> tuple[Path, str]:
    """Write a snapshot and return its folder and the SHA-256 of its manifest.

    Files first, the manifest over them last, all synced, then one rename: a folder with the final
    name is complete. The random state is this thread's, now.
    """
    folder = snapshot_folder(root, state.step)
    with published(folder) as temporary:
        save_weights(model, temporary / MODEL)
        tensors, scalars = _flatten_optimizer(optimizer)
        save_file(tensors, str(temporary / OPTIMIZER))
        content = {
            "step": state.step,
            "cursor": state.cursor,
            "spec_hash": state.spec_hash,
            "scheduler": state.scheduler,
            "progress": state.progress,
            "optimizer": scalars,
            "rng": _random_state(),
        }
        (temporary / STATE).write_text(json.dumps(content))
        files = {n: file_sha256(temporary / n) for n in (MODEL, OPTIMIZER, STATE)}
        (temporary / MANIFEST).write_bytes(canonical_json({"step": state.step, "files": files}))
    return folder, file_sha256(folder / MANIFEST)


def verify_snapshot(folder: Path) -> str:
    """Return the manifest's SHA-256 after checking every file against it. Errors: SnapshotError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"Snapshot {folder.name} has no readable manifest.") from error
    if set(files) != {MODEL, OPTIMIZER, STATE}:
        raise SnapshotError(f"Snapshot {folder.name} lists other files than a snapshot has.")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise SnapshotError(f"Snapshot {folder.name} lacks {name}.")
        if file_sha256(folder / name) != expected:
            raise SnapshotError(f"Snapshot {folder.name}: {name} is not what was written.")
    return file_sha256(folder / MANIFEST)


def load_snapshot(
    candidates: Sequence[Path],
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    spec_hash: str,
    callbacks: Callbacks,
) -> tuple[SnapshotState, Path]:
    """Restore model, optimiser and random state from the first sound snapshot, newest first.

    A damaged one is named in the log and the one before it is taken. Errors: SnapshotError where
    none is sound, or where a sound one belongs to another spec.
    """
    reasons: list[str] = []
    for folder in candidates:
        try:
            verify_snapshot(folder)
        except SnapshotError as error:
            reasons.append(str(error))
            callbacks.log(f"{error} Falling back to the snapshot before it.", "warning")
            continue
        content = json.loads((folder / STATE).read_text())
        if content["spec_hash"] != spec_hash:
            raise SnapshotError(
                f"Snapshot {folder.name} was written by another training spec. "
                "Start a new run instead of resuming this one."
            )
        load_weights(model, folder / MODEL)
        _restore_optimizer(optimizer, load_file(str(folder / OPTIMIZER)), content["optimizer"])
        _restore_random_state(content["rng"])
        state = SnapshotState(
            step=content["step"],
            cursor=content["cursor"],
            spec_hash=content["spec_hash"],
            scheduler=content["scheduler"],
            progress=content["progress"],
        )
        callbacks.log(f"Resuming after step {state.step} from {folder.name}.")
        return state, folder
    raise SnapshotError(
        "No sound snapshot to resume from. " + " ".join(reasons) + " Start the run again."
    )


def prune_snapshots(root: Path, best_step: int | None) -> list[Path]:
    """Delete all but the last two snapshots and the best; return what was deleted."""
    folders = snapshot_folders(root)
    best = None if best_step is None else snapshot_folder(root, best_step)
    gone = [f for f in folders[KEEP_LAST:] if f != best]
    for folder in gone:
        shutil.rmtree(folder)
    return gone


def _flatten_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {"param_groups": state["param_groups"], "values": {}}
    for number, values in state["state"].items():
        for name, value in values.items():
            key = f"{number}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach().contiguous()
            else:
                scalars["values"][key] = value
    return tensors, scalars


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *scalars["values"].items()]:
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": scalars["param_groups"]})


def _random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is what libraries use
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), cached],
>>>>>>> shell
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [s.numpy().tobytes().hex() for s in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


<<<<<<< HEAD
def _set_rng_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    legacy = (kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached)
    np.random.set_state(legacy)  # noqa: NPY002 - see _rng_state
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch"]), dtype=torch.uint8))
    cuda = [torch.frombuffer(bytearray.fromhex(s), dtype=torch.uint8) for s in state["cuda"]]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
=======
def _restore_random_state(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002 - as above
    torch.set_rng_state(_byte_tensor(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_byte_tensor(s) for s in state["cuda"]])


def _byte_tensor(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
>>>>>>> shell
