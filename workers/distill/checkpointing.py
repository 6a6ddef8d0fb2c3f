"""Snapshots of a training: whole and verified, or not there; the last two and the best are kept."""

import json
import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from app.specs.fingerprint import canonical_json, file_sha256
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
UNRECORDED_SECONDS = 10.0
"""A snapshot stays so long: an attempt that is lost now may not have told of a later one."""


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """What state.json holds beside the random generators: where training stands."""

    step: int
    cursor: int
    spec_hash: str
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
    name is complete. The random state is this thread's, now. Errors: DiskFullError.
    """
    folder = snapshot_folder(root, state.step)
    tensors, scalars = _flatten_optimizer(optimizer)
    held = (*model.parameters(), *tensors.values())
    needed = sum(t.numel() * t.element_size() for t in held)
    with published(folder, needed=needed) as temporary:
        save_weights(model, temporary / MODEL)
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


def recorded_snapshots(
    snapshots: Sequence[tuple[int, Path, str]], callbacks: Callbacks
) -> list[Path] | None:
    """Return the folders whose manifest is the one that was recorded; None where none was.

    snapshots: (step, folder, manifest SHA-256), in the order to try them, which is kept. A manifest
    vouches for its files, and the record for the manifest; one that differs is named in the log.
    """
    found = []
    for _, folder, recorded in snapshots:
        manifest = folder / MANIFEST
        if manifest.is_file() and file_sha256(manifest) == recorded:
            found.append(folder)
            continue
        what = "is not the one recorded" if manifest.is_file() else "is gone"
        text = f"Snapshot {folder.name}: its manifest {what}. Falling back to the one before it."
        callbacks.log(text, "warning")
    return found if snapshots else None


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
        callbacks.resumed(state.step)
        callbacks.log(f"Resuming after step {state.step} from {folder.name}.")
        return state, folder
    raise SnapshotError(
        " ".join(["No sound snapshot to resume from.", *reasons, "Start the run again."])
    )


def link_snapshot(source: Path, target: Path) -> None:
    """Make a snapshot appear at `target` too: hard links where the disk has them, else copies."""
    with published(target) as temporary:
        for name in (MODEL, OPTIMIZER, STATE, MANIFEST):
            try:
                os.link(source / name, temporary / name)
            except OSError:
                shutil.copy2(source / name, temporary / name)


def prune_snapshots(root: Path, best_step: int | None) -> list[Path]:
    """Delete all but the last two snapshots, the best and the newly written; return which."""
    folders = snapshot_folders(root)
    best = None if best_step is None else snapshot_folder(root, best_step)
    recorded = time.time() - UNRECORDED_SECONDS
    gone = [f for f in folders[KEEP_LAST:] if f != best and f.stat().st_mtime <= recorded]
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
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [s.numpy().tobytes().hex() for s in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


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
