"""Resumable uploads (tus 1.0): a lost connection costs the piece in hand, not the file."""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.client.rest import PREFIX, RETRY_SECONDS, Api, Refused, Unreachable
from app.specs.fingerprint import file_sha256

PIECE_BYTES = 4 * 1024 * 1024
TUS = {"Tus-Resumable": "1.0.0"}
CONFLICT, GONE = 409, 404
OnBytes = Callable[[int, int], None]


class UploadDamaged(Exception):
    """The stored bytes are not those of the file."""


def _ignore(_done: int, _total: int) -> None:
    return


def upload_file(api: Api, project: str, path: Path, on_bytes: OnBytes = _ignore) -> dict[str, Any]:
    """Send a file and return its upload; what is stored already is not sent again.

    A file whose sending was cut off goes on where it stopped, also from another process. Raises
    Unreachable, Refused, UploadDamaged.
    """
    size, sha256 = path.stat().st_size, file_sha256(path)
    place = f"{PREFIX}/projects/{project}/uploads"
    begun: str | None = None
    for known in api.get(f"/projects/{project}/uploads"):
        if known["filename"] != path.name or known["size"] != size:
            continue
        if known["sha256"] == sha256 and known["state"] in ("uploaded", "inspected"):
            on_bytes(size, size)
            return dict(known)
        if known["state"] == "uploading":
            begun = begun or f"{place}/{known['key']}"
    made = _send_all(api, begun or _create(api, place, path, size), path, on_bytes)
    if made["sha256"] != sha256 and begun is not None:
        # Another file of the same name and size had been begun: this one starts from its own.
        api.send("DELETE", begun, headers=TUS)
        made = _send_all(api, _create(api, place, path, size), path, on_bytes)
    if made["sha256"] != sha256:
        raise UploadDamaged(f"{path.name} changed while it was sent. Send it again.")
    return made


def _create(api: Api, place: str, path: Path, size: int) -> str:
    name = base64.b64encode(path.name.encode()).decode()
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": f"filename {name}"}
    return str(api.send("POST", place, headers=headers).headers["location"])


def _send_all(api: Api, place: str, path: Path, on_bytes: OnBytes) -> dict[str, Any]:
    size = path.stat().st_size
    offset = _offset(api, place)
    with path.open("rb") as file:
        while offset < size:
            on_bytes(offset, size)
            file.seek(offset)
            offset = _send_piece(api, place, file.read(PIECE_BYTES), offset)
    on_bytes(size, size)
    return dict(api.get(place.removeprefix(PREFIX)))


def _send_piece(api: Api, place: str, piece: bytes, offset: int) -> int:
    """Send one piece; return the offset the server then has."""
    headers = {
        **TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
    }
    try:
        answer = api.send("PATCH", place, content=piece, headers=headers)
    except Unreachable:
        return _offset(api, place)
    except Refused as refused:
        if refused.status != CONFLICT:
            raise
        time.sleep(RETRY_SECONDS)  # the cut connection may still hold the file
        return _offset(api, place)
    return int(answer.headers["upload-offset"])


def _offset(api: Api, place: str) -> int:
    """Ask how many bytes are stored, for `patience` seconds while nothing answers."""
    deadline = time.monotonic() + api.patience
    while True:
        try:
            return int(api.send("HEAD", place, headers=TUS).headers["upload-offset"])
        except Unreachable:
            if time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_SECONDS)
