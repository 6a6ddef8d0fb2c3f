"""A checkpoint goes with its files and jobs when nothing uses it; else a sentence names what does."""

from pathlib import Path

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.jobs.models import Job
from app.projects.models import Project
from app.specs.checkpoint import FolderSource
from app.specs.jobs import GenerateJob, JobKind, JobState, RegisterJob
from app.storage.blobs import LocalBlobs
from app.teacher_cache.models import CacheShard, CacheSpaceRow
from app.web.deps import Services
from tests.support import seeds

LIST = "/projects/routing/checkpoints"
API = f"/api/v1{LIST}"
TYPO = "/models/taecher is not a folder or a .gguf file."


@pytest.fixture
def project(parts: Services) -> Project:
    with parts.sessions.begin() as session:
        return seeds.project(session)


def files_of(parts: Services, key: str) -> Path:
    folder = LocalBlobs(parts.settings.blobs).path(key)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def put(parts: Services, project: Project, name: str, key: str = "checkpoints/x") -> int:
    with parts.sessions.begin() as session:
        row = seeds.checkpoint(session, project, name)
        row.blob = key
        return row.id


def left(parts: Services) -> list[str]:
    with parts.sessions() as session:
        return list(session.scalars(select(Checkpoint.name).order_by(Checkpoint.id)))


def test_files_go_with_the_last_checkpoint_that_has_them(
    signed_in: TestClient, api_client: TestClient, parts: Services, project: Project
) -> None:
    folder = files_of(parts, "checkpoints/x")
    first, second = put(parts, project, "first"), put(parts, project, "second")
    page = signed_in.get(f"{LIST}/{first}").text
    assert 'data-open="remove"' in page
    assert "unless another checkpoint has the same" in page
    answer = signed_in.post(f"{LIST}/{first}/remove")
    assert (answer.status_code, answer.headers["location"]) == (303, LIST)
    assert left(parts) == ["second"]
    assert folder.is_dir()
    assert api_client.get(f"{API}/{second}").json()["used_by"] == []
    assert api_client.delete(f"{API}/{second}").status_code == 204
    assert left(parts) == []
    assert not folder.exists()
    assert api_client.delete(f"{API}/{second}").status_code == 404


def test_a_mistyped_teacher_goes_and_the_project_asks_for_another(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    source = FolderSource(path="/models/taecher")
    with parts.sessions.begin() as session:
        spec = RegisterJob(checkpoint_id=1, source=source)
        job = seeds.job(
            session,
            project,
            JobState.FAILED,
            kind=JobKind.REGISTER,
            spec=spec,
            stream="checkpoint:1",
        )
        row = seeds.checkpoint(session, project, card=None, made_by=job, error=TYPO)
        session.get_one(Project, project.id).teacher_id = row.id
    page = signed_in.get(f"{LIST}/{row.id}").text
    for words in (
        f'href="{LIST}/new">Register another teacher',
        'href="/projects/routing/edit">Choose another teacher',
        "Where it came from, folder /models/big, stays as it is.",
        "The project then has no teacher",
    ):
        assert words in page, words
    assert 'value="teacher" selected' in signed_in.get(f"{LIST}/new").text
    assert signed_in.post(f"{LIST}/{row.id}/remove").status_code == 303
    with parts.sessions() as session:
        assert session.get_one(Project, project.id).teacher_id is None
        assert session.scalar(select(func.count(Job.id))) == 0
    assert "Register the teacher" in signed_in.get("/projects/routing").text
    assert "Register" not in signed_in.get("/queue").text.partition("Ended lately")[2]


def test_what_uses_a_checkpoint_is_named_and_keeps_it(
    signed_in: TestClient, api_client: TestClient, parts: Services, project: Project
) -> None:
    teacher, student = put(parts, project, "big"), put(parts, project, "small")
    with parts.sessions.begin() as session:
        found = session.get_one(Project, project.id)
        found.teacher_id, found.student_id = teacher, student
        version: DatasetVersion = seeds.version(session, found)
        for number in range(1, 6):
            seeds.run(session, found, number, teacher_id=teacher, student_id=student)
        made = seeds.evaluation(
            session, found, version.id, role="teacher", name="Teacher", right=190
        )
        made.checkpoint_id = teacher
        session.add(CacheSpaceRow(address="a", spec={}, teacher_id=teacher))
        session.flush()
        session.add(CacheShard(space="a", sha256="x", blob="x", bytes=3, rows=1900, fence=1))
        seeds.job(
            session,
            found,
            JobState.QUEUED,
            kind=JobKind.GENERATE,
            spec=GenerateJob(checkpoint_id=teacher, prompts_upload_id=1, output_upload_id=2),
            title="Answer prompts",
        )
    used_by = api_client.get(f"{API}/{teacher}").json()["used_by"]
    assert used_by == [
        "the project, as its teacher",
        "the job “Answer prompts”",
        "run #5 “kd” (teacher)",
        "run #4 “kd” (teacher)",
        "run #3 “kd” (teacher)",
        "2 more runs",
        f"evaluation {made.id} (“Teacher”)",
        "1,900 rows of the teacher cache",
    ]
    refused = api_client.delete(f"{API}/{teacher}")
    assert refused.status_code == 409
    said = (
        "“big” cannot be removed.",
        "Give that role to another",
        "cancel them",
        "teacher cache first",
    )
    for words in (*used_by, *said):
        assert words in refused.json()["message"], words
    page = signed_in.get(f"{LIST}/{teacher}").text
    assert "1,900 rows of the teacher cache" in page
    assert 'data-open="remove"' not in page
    assert signed_in.post(f"{LIST}/{teacher}/remove").status_code == 409
    assert "the project, as its student" in api_client.delete(f"{API}/{student}").json()["message"]
    assert left(parts) == ["big", "small"]


@pytest.mark.usefixtures("project")
def test_one_that_is_being_made_stays_until_its_job_has_ended(
    api_client: TestClient, parts: Services
) -> None:
    made = api_client.post(
        API, json={"name": "big", "source": {"kind": "hub", "repo_id": "a/b"}, "token": "hf_canary"}
    ).json()
    address = f"{API}/{made['id']}"
    refused = api_client.delete(address)
    assert refused.status_code == 409
    assert "the job “Register big”" in refused.json()["message"]
    assert api_client.post(f"/api/v1/jobs/{made['job_id']}/cancel").status_code == 202
    assert api_client.delete(address).status_code == 204
    assert left(parts) == []
    assert not list((parts.settings.home / "secrets").glob("hub-*"))
