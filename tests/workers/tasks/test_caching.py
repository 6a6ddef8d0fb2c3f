"""A damaged shard is found before use and made again alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.workers.distill.conftest import make_model
from tests.workers.distill.test_capture import SPACE, TALKS, V
from workers.distill.callbacks import Silent, Stopped
from workers.distill.capture import capture
from workers.distill.errors import CorruptShardError
from workers.distill.teacher_shards import ShardFile
from workers.distill.teachers import LocalTeacher
from workers.tasks.caching import DAMAGED, giving_up_damaged, sound


class Told(Silent):
    def __init__(self) -> None:
        self.published: list[Mapping[str, Any]] = []
        self.said: list[str] = []

    def publish(self, payload: Mapping[str, Any]) -> None:
        self.published.append(payload)

    def log(self, text: str, level: str = "info") -> None:
        self.said.append(f"{level}: {text}")


def fill(folder: Path, held: tuple[str, ...] = ()) -> tuple[ShardFile, ...]:
    teacher = LocalTeacher(make_model(V), V)
    _, made = capture(
        TALKS, teacher, SPACE, folder=folder, callbacks=Silent(), cached=held, shard_rows=120
    )
    return made


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_only_the_damaged_shard_is_made_again(tmp_path: Path, harm: str) -> None:
    made = fill(tmp_path)
    assert len(made) >= 3
    bad = made[1]
    whole = bad.path.read_bytes()
    if harm == "gone":
        bad.path.unlink()
    else:
        cut = whole[:-1] if harm == "cut" else whole[:40] + bytes([whole[40] ^ 4]) + whole[41:]
        bad.path.write_bytes(cut)

    told = Told()
    entries = {str(s.path): tuple(e.entry for e in s.entries) for s in made}
    kept = sound(entries, SPACE.address, told)

    assert [*kept] == [s.path for s in made if s is not bad]
    assert told.published == [{"kind": DAMAGED, "space": SPACE.address, "shard": bad.sha256}]
    [line] = told.said
    assert line.startswith("warning:")
    assert bad.sha256[:12] in line
    assert f"({len(bad.entries)} conversations)" in line
    held = tuple(e for found in kept.values() for e in found)
    [again] = fill(tmp_path, held)
    assert again.sha256 == bad.sha256
    assert again.path.read_bytes() == whole


def test_what_cannot_be_opened_for_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(tmp_path)

    def too_many(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", too_many)
    told = Told()
    with pytest.raises(OSError, match="Too many open files"):
        sound({str(made[0].path): ()}, SPACE.address, told)
    assert told.published == []


def test_the_check_of_many_shards_can_be_stopped(tmp_path: Path) -> None:
    made = fill(tmp_path)
    told = Told()
    told.stop = True
    with pytest.raises(Stopped):
        sound({str(shard.path): () for shard in made}, SPACE.address, told)
    assert told.published == []


def test_a_body_that_finds_damage_says_so_and_fails() -> None:
    told = Told()
    with pytest.raises(CorruptShardError), giving_up_damaged(SPACE.address, told):
        raise CorruptShardError("is damaged", shard="f" * 64)
    assert told.published == [{"kind": DAMAGED, "space": SPACE.address, "shard": "f" * 64}]
