"""Teacher rows as the bytes of a frame and back, and at a temperature.

Frame: row count, grid size, id bytes, then columns over all rows (sizes; value range, log r a
temperature and entropy as byte planes of fp16) and over all head entries in rank order (id byte
planes; steps down from rank to rank in u8 or u16 byte planes, which compress better than
distances). Log p at rank 0 is not stored: head and residual sum to one, so the residual at T = 1
gives it. Where the rest was sampled: how many distinct ids per row, then their byte planes and how
often each was drawn (no log p: a draw weighs r / n, and samples serve T = 1 alone).
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.distill.errors import CorruptShardError, RowCountError, TemperatureError
from workers.distill.values import SparseTargets, TargetRows

_HEADER = struct.Struct("<I6B")
"""Rows, grid size, place of T = 1 in it, id bytes, size bytes, value bytes, samples a row."""
_MAX_HEAD = 65_535
_LARGEST_LOG_R = np.float16(-(2.0**-10))
"""A residual is never rounded up to 1: the head would lose all its mass."""


def encode_rows(
    rows: TargetRows, *, vocabulary: int, grid: Sequence[float], value_bytes: int = 1
) -> bytes:
    """Return the frame of one entry, uncompressed. `grid`: temperatures of `rows.log_r`'s columns.

    Ids take 2 bytes where the vocabulary allows, else 3. Bounds after decoding: log p within
    range/510 (range/131,070 with 2 value bytes) + 0.1 % of its distance from rank 0, log r and
    entropy within 0.1 % (fp16). Shares of samples are exact.
    """
    valid = rows.ids >= 0
    sizes = valid.sum(1)
    count, width = rows.ids.shape
    if width > _MAX_HEAD or (count and int(sizes.min()) < 1):
        raise RowCountError("A teacher row needs 1 to 65,535 head entries.")
    if rows.log_r.shape[1] != len(grid):
        raise RowCountError(f"{rows.log_r.shape[1]} residuals a row do not fit the grid {grid}.")
    id_bytes = 2 if vocabulary <= 1 << 16 else 3
    distance = np.where(valid, rows.logp[:, :1] - rows.logp, 0).astype(np.float32)
    span = distance.max(1, initial=0).astype(np.float16)
    most = 256**value_bytes - 1
    scale = np.where(span > 0, most / np.maximum(span.astype(np.float32), 1e-12), 0)
    steps = np.clip(np.rint(distance * scale[:, None]), 0, most).astype(f"<u{value_bytes}")
    if (np.diff(distance, axis=1)[valid[:, 1:]] < 0).any():
        raise RowCountError("Teacher rows must list their head in rank order.")
    ids = rows.ids[valid]
    with np.errstate(over="ignore"):  # below fp16's range a residual is −inf: there is none
        log_r = rows.log_r.astype(np.float16)
    log_r = np.where(np.isneginf(log_r), log_r, np.minimum(log_r, _LARGEST_LOG_R))
    size_bytes = 1 if width < 1 << 8 else 2
    draws = 0 if rows.tail_ids is None else rows.tail_ids.shape[1]
    parts = [
        _HEADER.pack(
            count, len(grid), _place_of(1.0, grid), id_bytes, size_bytes, value_bytes, draws
        ),
        sizes.astype(f"<u{size_bytes}").tobytes(),
        *_planes(_halves(span, log_r, rows.entropy), 2),
        *_planes(ids, id_bytes),
        *_planes(np.diff(steps, axis=1)[valid[:, 1:]], value_bytes),
    ]
    if rows.tail_ids is not None and rows.tail_share is not None:
        drawn = rows.tail_ids >= 0
        parts += [
            drawn.sum(1).astype(np.uint8).tobytes(),
            *_planes(rows.tail_ids[drawn], id_bytes),
            np.rint(rows.tail_share[drawn] * draws).astype(np.uint8).tobytes(),
        ]
    return b"".join(parts)


def _halves(span: NDArray[Any], log_r: NDArray[Any], entropy: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bits of the fp16 columns over all rows, one column after the other."""
    columns = np.concatenate([span[None], log_r.T, entropy[None]])
    return columns.astype("<f2").view("<u2").ravel()


def _planes(values: NDArray[np.integer[Any]], count: int) -> Iterator[bytes]:
    """Yield the lowest byte of every value, then the next: alike bytes compress better together."""
    for plane in range(count):
        yield (values >> (8 * plane)).astype(np.uint8).tobytes()


def _joined(planes: NDArray[np.uint8], kind: type[np.integer[Any]]) -> NDArray[Any]:
    """Return values [N] from byte planes [P, N]."""
    values: NDArray[Any] = planes[0].astype(kind)
    for plane in range(1, planes.shape[0]):
        values |= planes[plane].astype(kind) << kind(8 * plane)
    return values


def decode_frames(frames: Sequence[bytes]) -> list[TargetRows]:
    """Return the rows of many uncompressed frames, decoded in one vectorised pass.

    All results share memory and one width K, the longest head of the lot.
    Errors: CorruptShardError where a frame's columns do not fit its header.
    """
    if not frames:
        return []
    columns = [_columns(frame) for frame in frames]
    parts = list(
        itertools.pairwise(itertools.accumulate((len(c.sizes) for c in columns), initial=0))
    )
    sizes = _whole([c.sizes for c in columns]).astype(np.int64)
    span = _whole([c.span for c in columns]).astype(np.float32)
    log_r = _whole([c.log_r for c in columns]).astype(np.float32)
    entropy = _whole([c.entropy for c in columns]).astype(np.float32)
    steps = _whole([c.steps for c in columns], axis=1)
    width = int(sizes.max(initial=1))
    valid = np.arange(width) < sizes[:, None]
    ids = np.full(valid.shape, -1, dtype=np.int64)
    ids[valid] = _joined(_whole([c.ids for c in columns], axis=1), np.int64)
    kind = np.uint8 if len(steps) == 1 else np.uint16
    distance = np.zeros(valid.shape, dtype=kind)
    distance[:, 1:][valid[:, 1:]] = _joined(steps, kind)
    np.cumsum(distance, axis=1, dtype=kind, out=distance)
    unit = span / np.float32(1 - 256 ** len(steps))
    logp = np.where(valid, distance * unit[:, None], np.float32(-np.inf))
    residual = _whole([log_r[a:b, c.place] for (a, b), c in zip(parts, columns, strict=True)])
    logp += (np.log1p(-np.exp(residual)) - np.log(np.exp(logp).sum(1)))[:, None]
    whole = TargetRows(ids, logp, log_r, entropy, *_samples(columns))
    return [whole.take(slice(a, b)) for a, b in parts]


def _whole(parts: Sequence[NDArray[Any]], axis: int = 0) -> NDArray[Any]:
    """Return parts as one array; one part as it is, which reading one by one consists of."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def _samples(
    columns: Sequence["_Columns"],
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """Return ids [R, n] and shares [R, n] of the samples, None where nothing was sampled."""
    draws = max(c.draws for c in columns)
    if not draws:
        return None, None
    sizes = np.concatenate([c.tail_sizes for c in columns])
    drawn = np.arange(draws) < sizes[:, None]
    ids = np.full(drawn.shape, -1, dtype=np.int64)
    ids[drawn] = _joined(np.concatenate([c.tail_ids for c in columns], axis=1), np.int64)
    share = np.zeros(drawn.shape, dtype=np.float32)
    share[drawn] = np.concatenate([c.tail_draws for c in columns])
    return ids, share / np.float32(draws)


def decode(
    rows: TargetRows, temperature: float, grid: Sequence[float], *, samples: bool = False
) -> SparseTargets:
    """Return the rows at one temperature of the grid: w = (1 − r_T) · softmax(log p / T).

    So Σ w + r_T = 1 whatever the rounding of log p. samples: take the samples of the rest along
    where the rows have them, each with its share of r, instead of one bucket; T must be 1.
    Errors: TemperatureError outside the grid.
    """
    log_r = torch.from_numpy(np.ascontiguousarray(rows.log_r[:, _place_of(temperature, grid)]))
    logp = torch.from_numpy(np.ascontiguousarray(rows.logp))
    log_w = torch.log_softmax(logp / temperature, -1)
    log_w += torch.log(-torch.expm1(log_r))[:, None]
    ids, drawn = np.maximum(rows.ids, 0), 0
    if samples and rows.tail_ids is not None and rows.tail_share is not None:
        if temperature != 1.0:
            raise TemperatureError("Samples of the rest were drawn at T = 1 and serve no other T.")
        drawn = rows.tail_ids.shape[1]
        ids = np.concatenate([ids, np.maximum(rows.tail_ids, 0)], axis=1)
        shares = torch.from_numpy(np.ascontiguousarray(rows.tail_share))
        log_w = torch.cat([log_w, log_r[:, None] + shares.log()], 1)
    return SparseTargets(
        ids=torch.from_numpy(ids),
        log_w=log_w,
        log_r=log_r,
        temperature=float(temperature),
        samples=drawn,
        entropy=torch.from_numpy(np.ascontiguousarray(rows.entropy)) if drawn else None,
    )


def join_rows(parts: Sequence[TargetRows]) -> TargetRows:
    """Concatenate rows of several entries, padded to the longest head."""
    width = max((p.ids.shape[1] for p in parts), default=1)

    def padded(name: str, fill: float) -> NDArray[np.generic]:
        arrays = [getattr(p, name) for p in parts]
        return np.concatenate(
            [
                np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill)
                if a.shape[1] < width
                else a
                for a in arrays
            ]
        )

    return TargetRows(
        ids=padded("ids", -1).astype(np.int64, copy=False),
        logp=padded("logp", -np.inf).astype(np.float32, copy=False),
        log_r=np.concatenate([p.log_r for p in parts]),
        entropy=np.concatenate([p.entropy for p in parts]),
        **_joined_samples(parts),
    )


def _joined_samples(parts: Sequence[TargetRows]) -> dict[str, NDArray[Any]]:
    """Concatenate what was sampled; nothing where one of the entries has rows and no samples."""
    draws = max((0 if p.tail_ids is None else p.tail_ids.shape[1] for p in parts), default=0)
    bare = [p.tail_ids is None for p in parts]
    if not draws or any(b and (p.ids >= 0).any() for b, p in zip(bare, parts, strict=True)):
        return {}
    ids = [_or_padding(p.tail_ids, (len(p.ids), draws), -1) for p in parts]
    shares = [_or_padding(p.tail_share, (len(p.ids), draws), 0) for p in parts]
    return {
        "tail_ids": np.concatenate(ids),
        "tail_share": np.concatenate(shares).astype(np.float32),
    }


def _or_padding(found: NDArray[Any] | None, shape: tuple[int, int], fill: int) -> NDArray[Any]:
    return np.full(shape, fill, dtype=np.int64) if found is None else found


def _place_of(temperature: float, grid: Sequence[float]) -> int:
    for place, known in enumerate(grid):
        if abs(known - temperature) <= 1e-6 * known:
            return place
    raise TemperatureError(
        f"The teacher cache was captured at T = {', '.join(f'{t:g}' for t in grid)}, not at "
        f"{temperature:g}. Choose one of these, or capture with {temperature:g} in the grid."
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """A frame's columns as views over its bytes; what is over all entries lies in byte planes."""

    sizes: NDArray[Any]
    span: NDArray[Any]
    log_r: NDArray[Any]
    entropy: NDArray[Any]
    ids: NDArray[np.uint8]
    steps: NDArray[np.uint8]
    place: int
    draws: int
    tail_sizes: NDArray[np.uint8]
    tail_ids: NDArray[np.uint8]
    tail_draws: NDArray[np.uint8]


class _Cursor:
    """Takes arrays off the front of a frame. Errors: CorruptShardError where it is too short."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self.at = _HEADER.size

    def take(self, dtype: str, items: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize * items
        if self.at + size > len(self._frame):
            raise CorruptShardError("A teacher frame's columns do not fit its header.")
        array = np.frombuffer(self._frame, dtype=dtype, count=items, offset=self.at)
        self.at += size
        return array

    def halves(self, columns: int, items: int) -> NDArray[np.float16]:
        """Return fp16 columns [C, N] from their two byte planes."""
        planes = self.planes(2, columns * items)
        return np.ascontiguousarray(planes.T).view("<f2").reshape(columns, items)

    def planes(self, planes: int, items: int) -> NDArray[np.uint8]:
        return self.take("u1", planes * items).reshape(planes, items)


def _columns(frame: bytes) -> _Columns:
    if len(frame) < _HEADER.size:
        raise CorruptShardError("A teacher frame is shorter than its header.")
    count, grid, place, id_bytes, size_bytes, value_bytes, draws = _HEADER.unpack_from(frame)
    if place >= grid or id_bytes not in (2, 3) or not {size_bytes, value_bytes} <= {1, 2}:
        raise CorruptShardError("A teacher frame's header holds what no writer writes.")
    cursor = _Cursor(frame)
    sizes = cursor.take(f"<u{size_bytes}", count)
    total = int(sizes.sum(dtype=np.int64))
    if total < count:
        raise CorruptShardError("A teacher frame has rows without a head.")
    halves = cursor.halves(2 + grid, count)
    ids, steps = cursor.planes(id_bytes, total), cursor.planes(value_bytes, total - count)
    tail_sizes = cursor.take("u1", count if draws else 0)
    drawn = int(tail_sizes.sum(dtype=np.int64))
    tail_ids, tail_draws = cursor.planes(id_bytes, drawn), cursor.take("u1", drawn)
    if cursor.at != len(frame) or int(tail_sizes.max(initial=0)) > draws:
        raise CorruptShardError("A teacher frame's columns do not fit its header.")
    return _Columns(
        sizes=sizes,
        span=halves[0],
        log_r=halves[1:-1].T,
        entropy=halves[-1],
        ids=ids,
        steps=steps,
        place=place,
        draws=draws,
        tail_sizes=tail_sizes,
        tail_ids=tail_ids,
        tail_draws=tail_draws,
    )
