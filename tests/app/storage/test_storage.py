"""Blob keys never leave the root, blobs appear whole, uploads have one writer and no gap."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import NotFound, PayloadTooLarge
from app.storage import uploads
from app.storage.blobs import BadBlobKey, LocalBlobs

ROOT = Path("/srv/blobs")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", ".hidden", "a\x00", "a\n", "é"]
)
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(BadBlobKey):
        LocalBlobs(ROOT).path(key)


@given(st.text(alphabet="ab./\\~%\x00\n ", max_size=20))
def test_no_key_leaves_the_root(key: str) -> None:
    try:
        found = LocalBlobs(ROOT).path(key)
    except BadBlobKey:
        return
    assert found.resolve().is_relative_to(ROOT)
    assert found.resolve() != ROOT


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    with pytest.raises(BadBlobKey):
        LocalBlobs(tmp_path / "root").path("out/secret")


def test_files_and_folders_move_in(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "root")
    (tmp_path / "f").write_text("one")
    blobs.put_file(tmp_path / "f", "a/f")
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "w").write_text("two")
    blobs.put_folder(folder, "b/made")
    assert blobs.path("a/f").read_text() == "one"
    assert (blobs.path("b/made") / "w").read_text() == "two"
    folder.mkdir()
    (folder / "w").write_text("three")
    blobs.put_folder(folder, "b/made")
    assert (blobs.path("b/made") / "w").read_text() == "two"
    assert not folder.exists()
    assert sorted(p.name for p in (tmp_path / "root" / "b").iterdir()) == ["made"]
    blobs.delete("b/made")
    blobs.delete("a/f")
    blobs.delete("a/f")
    assert not blobs.path("b/made").exists()


def test_an_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "u" / "key"
    uploads.create(path)
    first = uploads.Appender(path, 0, 10)
    first.write(b"01234")
    with pytest.raises(uploads.UploadBusy):
        uploads.Appender(path, 0, 10)
    first.close()
    assert uploads.offset(path) == 5
    with pytest.raises(uploads.WrongOffset):
        uploads.Appender(path, 4, 10)
    second = uploads.Appender(path, 5, 10)
    second.write(b"56789")
    with pytest.raises(PayloadTooLarge):
        second.write(b"x")
    second.close()
    assert path.read_bytes() == b"0123456789"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_upload_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        uploads.offset(tmp_path / "none")
