"""Freezing counts the tokens of each conversation for the teacher; the list and the API show them."""

from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.datasets import service
from app.datasets.models import DatasetVersion
from tests.app.datasets.made import Made, work
from tests.workers.distill import tiny
from workers.distill.callbacks import Silent
from workers.distill.checkpoints import read_card, save_checkpoint
from workers.distill.lengths import token_counts

HOME = "/projects/routing/datasets"


def teacher(made: Made, tmp_path: Path) -> Path:
    """Make a ready teacher of the project, with its files; return its folder."""
    folder = made.settings.blobs / "checkpoints" / "t"
    save_checkpoint(tiny.llama(), tiny.tokenizer(), folder)
    card = read_card(folder)
    with made.session() as (session, project):
        row = Checkpoint(
            project_id=project.id,
            name="t",
            state="ready",
            origin={"kind": "folder", "path": str(tmp_path)},
            blob="checkpoints/t",
            card=card.model_dump(mode="json"),
        )
        session.add(row)
        session.flush()
        project.teacher_id = row.id
    return folder


def freeze(made: Made, version_id: int) -> Path:
    """Freeze a version as a worker does; return its conversations file."""
    with made.session() as (session, project):
        view = service.get_view(session, project.id, version_id)
        job = service.start_freeze(session, view.version, owner="ada")
        work(session, job, made.settings, made.tmp_path)
        assert session.get_one(DatasetVersion, version_id).state == "frozen"
        return service.conversations_path(view.version, made.settings)


def test_the_tokens_of_the_teacher_are_shown(
    signed_in: TestClient, made: Made, tmp_path: Path
) -> None:
    folder = teacher(made, tmp_path)
    version = made.version()
    place = f"/api/v1/projects/routing/versions/{version}/conversations"
    assert signed_in.get(place).json()["lines"][0]["n_tokens"] is None
    assert "tokens" not in signed_in.get(f"{HOME}/{version}/conversations").text
    counts = token_counts(freeze(made, version), folder, Silent())
    first = signed_in.get(place).json()["lines"][0]
    lines = signed_in.get(f"{place}?split=test").json()["lines"]
    assert [line["n_tokens"] for line in lines] == [int(counts[line["row"]]) for line in lines]
    shown = signed_in.get(f"{HOME}/{version}/conversations").text
    assert f'data-l="Characters · tokens">{first["n_chars"]} · {counts[0]}<' in shown
    with made.session() as (_, project):
        project.teacher_id = None
    assert "tokens" not in signed_in.get(f"{HOME}/{version}/conversations").text


def test_a_version_is_frozen_without_a_tokenizer_too(
    signed_in: TestClient, made: Made, tmp_path: Path
) -> None:
    (teacher(made, tmp_path) / "tokenizer.json").write_text("{")
    version = made.version()
    freeze(made, version)
    assert "tokens" not in signed_in.get(f"{HOME}/{version}/conversations").text


def test_a_count_is_that_of_the_rendered_text_and_takes_no_longer_than_allowed(
    made: Made, tmp_path: Path
) -> None:
    folder = teacher(made, tmp_path)
    path = freeze(made, made.version())
    counts = token_counts(path, folder, Silent())
    first = service.queries.conversation_at(path, 0)
    assert first is not None
    messages = [{"role": m.role, "content": m.content} for m in first.messages]
    text = tiny.tokenizer().apply_chat_template(messages, tokenize=False)
    ids = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert counts[0] == len(ids)
    assert counts.min() > 0
    none = token_counts(path, folder, Silent(), seconds=-1)
    assert np.all(none == -1)
