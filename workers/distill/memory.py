"""How much memory a micro-batch takes, and how many conversations fit into what is free."""

import contextlib
import ctypes
import math
import re
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from workers.distill.errors import OutOfMemoryError

HEADROOM = 0.8
"""Share of the free memory that a step may take: lengths, kernels and neighbours vary."""
MEND = (
    "Turn gradient checkpointing on, allow fewer tokens a conversation, take a smaller student, or "
    "read the teacher's stored rows instead of a live one."
)
_CGROUP_2 = Path("/sys/fs/cgroup")
_CGROUP_1 = Path("/sys/fs/cgroup/memory")
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_UNLIMITED = 1 << 60


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; the CPU's allocator has no own type."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_bytes(device: torch.device) -> int:
    """Return what a training may still take on a device.

    On the CPU the machine's available memory or what the control group leaves, whichever is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    available = _field("/proc/meminfo", "MemAvailable")
    left = [found for found in (available, *map(_group_left, (_CGROUP_2, _CGROUP_1))) if found]
    return min(left, default=_UNLIMITED)


def growth_of(device: torch.device, work: Callable[[], None]) -> int:
    """Return by how many bytes the peak lies above what was in use before `work`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with contextlib.suppress(AttributeError, OSError):  # only glibc keeps freed memory for itself
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # where it is refused, the peak is that of the whole life
        Path("/proc/self/clear_refs").write_text("5")
    before = _field("/proc/self/status", "VmRSS") or 0
    work()
    peak = _field("/proc/self/status", "VmHWM")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - before)


def largest_fit(
    most: int, measure: Callable[[int], float], *, beside: int, free: int
) -> tuple[int, float]:
    """Return how many conversations a micro-batch may have, and the bytes they take at most.

    `most`, else a power of two below. measure: the bytes that a step of so many of the longest
    takes; beside: bytes that training takes besides. n times as many take at most n times as much,
    so nothing is measured that might not fit: from one on by what was measured last. Errors:
    OutOfMemoryError where not even one fits.
    """
    size, taken = 1, measure(1)
    if taken + beside > free:
        raise OutOfMemoryError(
            f"A step of one conversation takes {_mib(taken + beside)} of memory beside the "
            f"weights, and {_mib(free)} are free. {MEND}"
        )
    room = HEADROOM * free - beside
    sizes = [1 << n for n in range(most.bit_length()) if 1 << n < most] + [most]
    while True:
        safe = [n for n in sizes if n > size and taken * n / size <= room]
        if not safe:
            return size, taken
        if safe[-1] == most:
            return most, taken * most / size
        size = safe[-1]
        taken = measure(size)


def halved(size: int, step: int) -> int:
    """Return the largest power of two below `size`. Errors: OutOfMemoryError where it is one."""
    if size <= 1:
        raise OutOfMemoryError(f"Step {step}: not even one conversation fits into memory. {MEND}")
    return 1 << (size - 1).bit_length() - 1


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB" if math.isfinite(count) else "more than there is"


def _field(file: str, name: str) -> int | None:
    """Return a field of a file of /proc in bytes."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


def _group_left(root: Path) -> int | None:
    """Return what the control group below `root` leaves; None without a limit.

    Files it has read and no longer needs count as used there, and give way when memory is wanted.
    """
    for limit, used, cached in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            most = int((root / limit).read_text())
            if most >= _UNLIMITED:
                return None
            held = int((root / used).read_text()) - _stat(root, cached)
            return max(0, most - max(0, held))
    return None


def _stat(root: Path, name: str) -> int:
    """Return a field of a control group's memory.stat in bytes, 0 where there is none."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name} (\d+)$", (root / "memory.stat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
