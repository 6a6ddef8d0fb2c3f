"""Uploads, imports and freezes through the services and the task adapters, on the database."""

from pathlib import Path

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets import advice, queries, service
from app.datasets.schemas import ConversationFilter, ImportRequest
from app.errors import Conflict, NotFound, PayloadTooLarge
from app.jobs import service as jobs
from app.jobs.models import Job
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.settings import Settings
from app.specs.conversation import Conversation, ImportFunnel, Message, Split
from app.specs.jobs import JobKind, JobState
from tests.app.datasets.made import imported, stored, work
from workers.ingest.dataset_file import write_conversations


@pytest.fixture
def project(session: Session) -> Project:
    return projects.create(session, ProjectCreate(name="Routing"), owner_id=None)


def test_an_upload_is_inspected_once(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    upload = stored(session, project, settings)
    first = upload.job_id
    again = service.finish_upload(session, upload.id, sha256="other", owner="admin")
    assert again.job_id == first
    assert again.sha256 != "other"
    path = service.upload_path(settings, upload.key)
    assert path.stat().st_mode & 0o777 == 0o600
    work(session, first, settings, tmp_path)
    assert upload.state == "inspected"
    assert upload.report is not None
    assert upload.report["format"] == "openai_finetune"


def test_an_import_adds_up_and_makes_a_draft(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    version = imported(session, project, settings, tmp_path)
    assert version.state == "draft"
    funnel = ImportFunnel.model_validate(version.funnel)
    assert (funnel.records, funnel.calls) == (121, 120)
    assert sum(funnel.quarantined.values()) == 1
    rejects = queries.rejects(service.rejects_path(version, settings))
    assert [r.line for r in rejects] == [121]


def test_conversations_page_by_row_filter_and_search(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    version = imported(session, project, settings, tmp_path)
    path = service.conversations_path(version, settings)
    seen: list[int] = []
    after: int | None = -1
    while after is not None:
        page = queries.conversation_page(path, ConversationFilter(), after=after)
        seen += [item.row for item in page.lines]
        after = page.next_after
    assert seen == list(range(120))
    tests = queries.conversation_page(path, ConversationFilter(split="test"), limit=200)
    assert {item.split for item in tests.lines} == {"test"}
    found = queries.conversation_page(path, ConversationFilter(search="QUESTION 77")).lines
    assert [item.first_user for item in found] == ["question 77"]
    shown = queries.conversation_at(path, found[0].row)
    assert shown is not None
    assert shown.id == found[0].id
    assert queries.conversation_at(path, 120) is None
    none = queries.conversation_page(path, ConversationFilter(reference=True))
    assert none.lines == []


def test_a_frozen_version_never_changes(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    version = imported(session, project, settings, tmp_path)
    job = service.start_freeze(session, version, owner="admin")
    work(session, job, settings, tmp_path)
    assert version.state == "frozen"
    before = version.content_sha256
    assert before is not None
    funnel = ImportFunnel.model_validate(version.funnel)
    service.frozen(session, version.id, before)  # a second, equal freeze is no change
    changes = (
        lambda: service.start_freeze(session, version, owner="admin"),
        lambda: service.edit_notes(session, version, "new"),
        lambda: service.frozen(session, version.id, "0" * 64),
        lambda: service.imported(session, version.id, funnel, conversations="x", rejects="y"),
    )
    for change in changes:
        with pytest.raises(service.DatasetIsFrozen) as caught:
            change()
        assert caught.value.status == 409
    assert version.content_sha256 == before


def test_imports_count_versions_and_failures_are_kept(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    first = imported(session, project, settings, tmp_path)
    request = ImportRequest(dataset="traffic", upload_ids=first.import_spec["upload_ids"])
    second = service.start_import(session, project, request, owner="admin")
    assert (first.number, second.number) == (1, 2)
    job = session.scalars(select(Job).where(Job.kind == JobKind.IMPORT).order_by(Job.id)).all()[-1]
    job.state = JobState.STARTING
    session.flush()
    jobs.end(session, job, JobState.FAILED, message="No records.")
    assert (second.state, second.error) == ("failed", "No records.")


def test_what_is_not_stored_cannot_be_imported(
    session: Session, project: Project, settings: Settings
) -> None:
    upload = service.start_upload(session, project, filename="a", size=9, settings=settings)
    with pytest.raises(Conflict, match="not stored yet"):
        service.start_import(
            session, project, ImportRequest(dataset="d", upload_ids=[upload.id]), owner="a"
        )
    other = projects.create(session, ProjectCreate(name="Other"), owner_id=None)
    with pytest.raises(NotFound):
        service.start_import(
            session, other, ImportRequest(dataset="d", upload_ids=[upload.id]), owner="a"
        )
    with pytest.raises(PayloadTooLarge):
        service.start_upload(
            session, project, filename="a", size=settings.max_upload_bytes + 1, settings=settings
        )


def test_an_upload_of_an_import_stays(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    version = imported(session, project, settings, tmp_path)
    (upload,) = queries.uploads_by_id(session, project.id, version.import_spec["upload_ids"])
    with pytest.raises(Conflict, match="belongs to an import"):
        service.drop_upload(session, upload, settings)
    free = stored(session, project, settings)
    free_path = service.upload_path(settings, free.key)
    service.drop_upload(session, free, settings)
    assert not free_path.exists()


def test_the_version_list_takes_one_query(
    session: Session, project: Project, settings: Settings
) -> None:
    counts = []
    for _ in range(2):
        upload = stored(session, project, settings)
        request = ImportRequest(dataset="traffic", upload_ids=[upload.id])
        service.start_import(session, project, request, owner="admin")
        session.expire_all()
        statements: list[str] = []
        connection = session.connection()
        project_id = project.id

        def note(_c: object, _k: object, text: str, *_rest: object) -> None:
            statements.append(text)  # noqa: B023 - called inside this turn only

        event.listen(connection, "before_cursor_execute", note)
        names = [(v.dataset.name, v.number) for v in queries.versions_of(session, project_id)]
        event.remove(connection, "before_cursor_execute", note)
        counts.append(len(statements))
        assert names
    assert counts == [1, 1]


def test_logged_models_beside_the_teacher_are_named() -> None:
    teacher = Checkpoint(name="Big", origin={"kind": "hub", "repo_id": "org/big-70b"})
    logged = ["big", "ORG/Big", "host/big-70b", "other"]
    assert advice.other_models(logged, teacher) == ["other"]
    assert advice.other_models(logged, None) == []


def test_warnings_are_sentences_with_counts() -> None:
    teacher = Checkpoint(name="Big", origin={"kind": "folder", "path": "/m/Big"})
    counts = {"records": 12, "calls": 12, "duplicates": 0, "folded": 0}
    splits = {"train": 8, "validation": 2, "test": 2}
    funnel = ImportFunnel(
        format="openai_chat",
        models={"big": 11, "other": 1},
        splits=splits,
        conversations=12,
        targets=12,
        **counts,
    )
    (told,) = advice.warnings_of(funnel, teacher)
    assert "the log names “other” in 1 call; the project's teacher is “Big”" in told
    assert advice.warnings_of(funnel, None) == []
    small = funnel.model_copy(update={"splits": {"train": 12}, "models": {}})
    assert [words.partition(":")[0] for words in advice.warnings_of(small, teacher)] == [
        "No validation conversations",
        "No test conversations",
    ]


def talk(split: Split, *said: str, reference: str | None = None) -> Conversation:
    """Make a conversation whose user says each text and is answered `yes`."""
    messages = []
    for text in said:
        messages.append(Message(role="user", content=text))
        answer = Message(role="assistant", content="yes", is_target=True, reference=reference)
        messages.append(answer)
    return Conversation(messages=tuple(messages), split=split, group=said[0])


def test_facets_follow_the_search_and_the_other_filters(tmp_path: Path) -> None:
    path = tmp_path / "talks.parquet"
    talks = [
        talk("train", "a parcel", reference="no"),
        talk("train", "a parcel", "and a role"),
        talk("test", "a letter", "b", "c", "d"),
    ]
    write_conversations(path, talks)
    all_of_it = queries.conversation_facets(path, ConversationFilter())
    assert (all_of_it.total, all_of_it.matching) == (3, 3)
    assert all_of_it.split == {"train": 2, "test": 1}
    assert all_of_it.reference == {"true": 1, "false": 2}
    assert all_of_it.turns == {"1": 1, "2-3": 1, "4-7": 1}
    some = ConversationFilter(search="PARCEL", turns="1", reference=True)
    found = queries.conversation_facets(path, some)
    assert found.matching == 1
    assert found.turns == {"1": 1}, "of those with a reference"
    assert found.reference == {"true": 1}, "of those with one turn"
    assert found.split == {"train": 1}


@pytest.mark.parametrize(
    ("search", "rows"), [("role", [1]), ("content", []), ("a letter", [2]), ('"', []), ("NO", [0])]
)
def test_a_search_sees_what_was_said_and_not_how_it_is_stored(
    tmp_path: Path, search: str, rows: list[int]
) -> None:
    path = tmp_path / "talks.parquet"
    said = (("a parcel",), ("a parcel", "and a role"), ("a letter",))
    talks = [talk("train", *texts) for texts in said]
    talks[0] = talk("train", *said[0], reference="no")
    write_conversations(path, talks)
    lines = queries.conversation_page(path, ConversationFilter(search=search)).lines
    assert [line.row for line in lines] == rows
