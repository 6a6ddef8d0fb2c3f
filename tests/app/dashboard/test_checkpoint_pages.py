"""Checkpoint pages: list, card, job, errors with their mend, register and cut; escape; queries."""

from collections.abc import Callable
from datetime import datetime

import pytest
from starlette.testclient import TestClient

from app.checkpoints import service
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import CheckpointAdd
from app.jobs import lease
from app.jobs.models import Job
from app.projects.models import Project
from app.specs.checkpoint import CheckpointCard, HubSource, PruneSpec
from app.specs.events import ErrorEvent
from app.specs.jobs import JobKind, JobState, Queue, RegisterJob
from app.specs.pruning import pruned_card
from app.web.deps import Services
from tests.support import seeds

LIST = "/projects/routing/checkpoints"
NEW = f"{LIST}/new"
PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}
OFFLINE = (
    "The hub could not be reached for owner/big (ConnectError). Check this machine's network, "
    "or register a local folder instead."
)


@pytest.fixture
def project(parts: Services) -> Project:
    with parts.sessions.begin() as session:
        return seeds.project(session)


def small(**sizes: int) -> CheckpointCard:
    card = pruned_card(seeds.CARD, PruneSpec(**sizes))
    assert card is not None
    return card


def row_of(parts: Services, number: int) -> Checkpoint:
    with parts.sessions() as session:
        found = session.get(Checkpoint, number)
        assert found is not None
        return found


def register(parts: Services, project: Project, name: str = "big") -> Checkpoint:
    with parts.sessions.begin() as session:
        data = CheckpointAdd(name=name, source=HubSource(repo_id="owner/big", revision="v2"))
        return service.register(session, project, data, settings=parts.settings, owner="ada")


def use(parts: Services, project: Project, **roles: int) -> None:
    with parts.sessions.begin() as session:
        found = session.get(Project, project.id)
        assert found is not None
        for name, number in roles.items():
            setattr(found, name, number)


def test_the_list_shows_cards_states_roles_and_how_they_compare(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    assert "Register the teacher" in signed_in.get(LIST).text
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project, seeds.EVIL)
        cut = {
            "kind": "pruned",
            "teacher_id": teacher.id,
            "prune": {"depth": 6, "calibration_conversations": 64},
        }
        seeds.checkpoint(session, project, "small", card=small(depth=6), origin=cut)
        other = seeds.CARD.model_copy(update={"tokenizer_fingerprint": "zz", "licence": None})
        seeds.checkpoint(session, project, "other", card=other)
        seeds.checkpoint(session, project, "bad", card=None, error="The <i>folder</i> is gone.")
    use(parts, project, teacher_id=teacher.id)
    register(parts, project, "waiting")
    page = signed_in.get(LIST).text
    assert "<script>alert" not in page
    for words in (
        "5 checkpoints",
        "the measure",
        "5.0×",
        "134.5 M",
        "106.2 M",
        "21.2 M",
        "30 × 576",
        "49,152",
        "ids differ",
        "not stated",
        "apache-2.0",
        "The &lt;i&gt;folder",
        "depth 6",
        "hub owner/big at v2",
        "Being handed to a worker.",
        "every 3s",
    ):
        assert words in page, words
    assert "calibration" not in page


def test_a_ready_checkpoint_shows_its_card_origin_and_use(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project)
        cut = {"kind": "pruned", "teacher_id": teacher.id, "prune": {"depth": 6}}
        padded = small(depth=6).model_copy(update={"vocabulary": 49_280})
        student = seeds.checkpoint(session, project, "small", card=padded, origin=cut)
        seeds.run(
            session, project, 4, name=seeds.EVIL, student_id=student.id, teacher_id=teacher.id
        )
    page = signed_in.get(f"{LIST}/{student.id}").text
    assert "The project has no teacher yet" in page
    use(parts, project, teacher_id=teacher.id, student_id=student.id)
    page = signed_in.get(f"{LIST}/{student.id}").text
    assert "<script>alert" not in page
    for words in (
        "5.0× less compute per token",
        "✓ in the band of 5–20×",
        "can be distilled",
        "Same ids, padded embeddings",
        "LlamaForCausalLM",
        "9, 3 key/value",
        "apache-2.0",
        "#4 &lt;script",
        "(student)",
        "pruned from big: depth 6",
        "The project&#39;s student",
        "Use as teacher",
    ):
        assert words in page, words
    assert "Use as student" not in page
    assert "hx-sse:connect" not in page
    teacher_page = signed_in.get(f"{LIST}/{teacher.id}").text
    assert "small</a>" in teacher_page
    assert "Against the teacher" not in teacher_page
    assert signed_in.get(f"{LIST}/999").status_code == 404
    with parts.sessions.begin() as session:
        seeds.project(session, "Other")
    assert signed_in.get(f"/projects/other/checkpoints/{student.id}").status_code == 404


def test_a_tokenizer_that_differs_says_what_to_do(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project)
        other = small(width=576 // 2).model_copy(update={"tokenizer_fingerprint": "zz"})
        student = seeds.checkpoint(session, project, "s", card=other)
    use(parts, project, teacher_id=teacher.id)
    page = signed_in.get(f"{LIST}/{student.id}").text
    for words in (
        "logit distillation is off",
        "! outside the band",
        "as text instead (sequence-level)",
    ):
        assert words in page, words


def test_a_job_is_followed_live_then_its_failure_shows_cause_and_mend(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    row = register(parts, project)
    page = signed_in.get(f"{LIST}/{row.id}").text
    for words in (
        "Being handed to a worker.",
        "not started yet",
        "hx-sse:connect",
        "state from:#live",
        "Cancel",
    ):
        assert words in page, words
    with parts.sessions.begin() as session:
        held = lease.claim(session, Queue.CPU, worker="w", host="h", lease_seconds=30)
        assert held is not None
        lease.running(session, held)
        lease.set_phase(session, held, "download")
        lease.set_progress(session, held, {"done": 1 << 20, "total": 4 << 20, "unit": "bytes"})
    part = signed_in.get(f"{LIST}/{row.id}", headers=PARTIAL).text
    assert "1.0 MiB of 4.0 MiB" in part
    assert "<html" not in part
    with parts.sessions.begin() as session:
        lease.fail(session, held, ErrorEvent(error="HubUnavailableError", message=OFFLINE))
    page = signed_in.get(f"{LIST}/{row.id}").text
    for words in (
        "It could not be made.",
        "or register a local folder instead.",
        "Try again",
        "Access token",
    ):
        assert words in page, words
    answer = signed_in.post(f"{LIST}/{row.id}/retry", data={"token": "hf_canary"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{LIST}/{row.id}")
    assert service.token_file(parts.settings, row.id).read_text() == "hf_canary"
    assert row_of(parts, row.id).state == "registering"
    assert signed_in.post(f"{LIST}/{row.id}/cancel").status_code == 303
    assert not service.token_file(parts.settings, row.id).exists()
    assert "It was cancelled." in signed_in.get(f"{LIST}/{row.id}").text


def test_a_job_that_died_without_a_word_is_not_shown_as_working(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        spec = RegisterJob(checkpoint_id=1, source=HubSource(repo_id="a/b"))
        job = seeds.job(
            session,
            project,
            JobState.FAILED,
            kind=JobKind.REGISTER,
            spec=spec,
            message="The worker was lost 3 times.",
        )
        row = seeds.checkpoint(session, project, card=None, made_by=job)
    for address in (LIST, f"{LIST}/{row.id}"):
        page = signed_in.get(address).text
        assert "The worker was lost 3 times." in page
        assert "st-failed" in page


def test_registering_starts_a_job_and_gives_the_role(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    page = signed_in.get(NEW).text
    assert 'value="teacher" selected' in page  # the first checkpoint is likely the teacher
    form = {
        "kind": "hub",
        "repo_id": "owner/big",
        "revision": "",
        "token": "hf_canary",
        "role": "teacher",
        "path": "",
        "name": "",
    }
    answer = signed_in.post(f"{NEW}/register", data=form)
    row = row_of(parts, 1)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{LIST}/{row.id}")
    assert (row.name, row.origin) == (
        "big",
        {"kind": "hub", "repo_id": "owner/big", "revision": "main"},
    )
    with parts.sessions() as session:
        found = session.get(Project, project.id)
        assert found is not None
        assert found.teacher_id == row.id
        assert session.get(Job, row.job_id) is not None
    assert 'value="teacher" selected' not in signed_in.get(NEW).text


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"kind": "folder", "path": " "}, "Is needed."),
        ({"kind": "hub", "repo_id": ""}, "Is needed."),
        ({"kind": "ftp"}, "Must be one of"),
        ({"kind": "folder", "path": "/x/big", "name": "taken"}, "Is taken in this project."),
        ({"kind": "folder", "path": "/"}, "Is needed."),
    ],
)
def test_a_refused_registration_keeps_what_was_typed_but_never_the_token(
    signed_in: TestClient, parts: Services, project: Project, form: dict[str, str], words: str
) -> None:
    with parts.sessions.begin() as session:
        seeds.checkpoint(session, project, "taken")
    kept = {"revision": seeds.EVIL, "token": "hf_canary", **form}
    page = signed_in.post(f"{NEW}/register", data=kept)
    assert page.status_code == 422
    assert words in page.text
    assert "&lt;script&gt;" in page.text
    assert "<script>alert" not in page.text
    assert "hf_canary" not in page.text


def test_the_gauge_follows_the_sizes(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    assert "register the teacher first" in signed_in.get(f"{NEW}?way=prune").text
    with parts.sessions.begin() as session:
        alien = seeds.CARD.model_copy(update={"architecture": "GemmaForCausalLM"})
        seeds.checkpoint(session, project, "alien", card=alien)
    assert "llama, mistral and qwen2 can" in signed_in.get(f"{NEW}?way=prune").text
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project, "big")
        version = seeds.version(session, project)
    page = signed_in.get(f"{NEW}?way=prune").text
    for words in ("traffic v1, frozen", "5.0×", 'value="6"', "big: 30 × 576"):
        assert words in page, words

    def gauge(**sizes: object) -> str:
        data = {"teacher_id": teacher.id, "dataset_version_id": version.id, **sizes}
        answer = signed_in.post(f"{NEW}/estimate", data=data, headers=PARTIAL)
        assert answer.status_code == 200
        assert "<html" not in answer.text
        return str(answer.text)

    assert "2.0× less compute" in gauge(depth=15)
    assert "! Outside the band" in gauge(depth=15)
    assert "✓ In the band" in gauge(depth=5)
    assert "Above 20× in compute" in gauge(depth=1)
    assert "Nothing would be removed" in gauge(depth="")
    assert "outside 1…30" in gauge(depth=31)
    assert "not a multiple of 9 heads" in gauge(width=500)
    assert "Fill in whole numbers" in gauge(depth="x")
    assert "Choose the checkpoint" in gauge(teacher_id=99)


def test_a_student_is_cut_and_named_by_its_sizes(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project, "big")
        version = seeds.version(session, project)
        strange = seeds.version(session, seeds.project(session, "Other"), "secret")
    form = {
        "teacher_id": teacher.id,
        "depth": 6,
        "student": "true",
        "dataset_version_id": version.id,
    }
    answer = signed_in.post(f"{NEW}/prune", data=form)
    assert answer.status_code == 303
    made = row_of(parts, 2)
    assert (made.name, made.state) == ("big-6x576", "registering")
    with parts.sessions() as session:
        job, found = session.get(Job, made.job_id), session.get(Project, project.id)
        assert job is not None
        assert found is not None
        assert job.spec["dataset_version_id"] == version.id
        assert found.student_id == made.id
    for change, words in (
        ({"depth": 30}, "Nothing would be removed"),
        ({"depth": "six"}, "Must be a whole number."),
        ({"depth": 5, "dataset_version_id": strange.id}, "no such version"),
        ({}, "Is taken in this project."),
    ):
        page = signed_in.post(f"{NEW}/prune", data={**form, **change})
        assert page.status_code == 422
        assert words in page.text


def test_roles_are_given_and_swapped(
    signed_in: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        a, b = seeds.checkpoint(session, project, "a"), seeds.checkpoint(session, project, "b")
        strange = seeds.checkpoint(session, seeds.project(session, "Other"), "c")
    for row, role in ((a, "teacher"), (b, "student"), (a, "student")):
        assert signed_in.post(f"{LIST}/{row.id}/role/{role}").status_code == 303
    with parts.sessions() as session:
        found = session.get(Project, project.id)
        assert found is not None
        assert (found.teacher_id, found.student_id) == (None, a.id)
    assert signed_in.post(f"{LIST}/{strange.id}/role/teacher").status_code == 404
    assert signed_in.post(f"{LIST}/{a.id}/role/owner").status_code == 422


def test_the_list_takes_the_same_queries_however_long(
    signed_in: TestClient,
    parts: Services,
    project: Project,
    count_queries: Callable[[Callable[[], object]], int],
) -> None:
    counts = []
    for turn in range(2):
        for number in range(6):
            register(parts, project, f"r{turn}{number}")
        with parts.sessions.begin() as session:
            for number in range(6):
                seeds.checkpoint(session, project, f"c{turn}{number}")
        counts.append(count_queries(lambda: signed_in.get(LIST)))
    assert counts[0] == counts[1]
    assert counts[0] <= 8


def test_the_api_says_what_the_pages_say(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project)
        seeds.checkpoint(session, project, "small", card=small(depth=6))
    use(parts, project, teacher_id=teacher.id)
    address = f"/api/v1{LIST}"
    big, cut = api_client.get(address).json()
    assert (big["role"], big["compression"]) == ("teacher", None)
    assert cut["compression"]["sentence"].startswith("5.0× less compute per token")
    assert cut["tokenizer"]["kind"] == "identical"
    assert api_client.get(f"{address}/{cut['id']}").json() == {**cut, "runs": [], "used_by": []}
    wanted = {"teacher_id": teacher.id, "prune": {"depth": 6}}
    found = api_client.post(f"{address}/students/estimate", json=wanted).json()
    assert found["card"]["parameters_total"] == cut["card"]["parameters_total"]
    assert found["compression"] == cut["compression"]
    wanted["prune"] = {"depth": 31}
    refused = api_client.post(f"{address}/students/estimate", json=wanted)
    assert refused.status_code == 422
    assert "outside 1…30" in refused.json()["fields"]["depth"]


def test_the_api_names_the_runs_and_students_of_a_checkpoint(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        teacher = seeds.checkpoint(session, project)
        made = seeds.checkpoint(session, project, "small", card=small(depth=6))
        made.origin = {"kind": "pruned", "teacher_id": teacher.id, "prune": {"depth": 6}}
        run = seeds.run(session, project, 1, state=JobState.SUCCEEDED, name="kd")
        run.teacher_id, run.student_id = teacher.id, made.id
    address = f"/api/v1{LIST}"
    found = api_client.get(f"{address}/{teacher.id}").json()
    assert found["students"] == [made.id]
    assert found["runs"] == [{"number": 1, "name": "kd", "part": "teacher"}]
    assert datetime.fromisoformat(found["created_at"]) == teacher.created_at
    assert api_client.get(f"{address}/{made.id}").json()["runs"][0]["part"] == "student"
    assert [row["students"] for row in api_client.get(address).json()] == [[made.id], []]
    assert api_client.get(f"{address}/999").status_code == 404


def test_the_api_tries_a_checkpoint_again_with_a_new_token(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    row = register(parts, project)
    address = f"/api/v1{LIST}/{row.id}/retry"
    assert api_client.post(address).status_code == 409
    with parts.sessions.begin() as session:
        held = lease.claim(session, Queue.CPU, worker="w", host="h", lease_seconds=30)
        assert held is not None
        lease.fail(session, held, ErrorEvent(error="HubUnavailableError", message=OFFLINE))
    answer = api_client.post(address, json={"token": "hf_canary"})
    assert answer.status_code == 202
    assert answer.json()["state"] == "registering"
    assert answer.json()["job_id"] > held.job_id
    assert "hf_canary" not in answer.text
    assert service.token_file(parts.settings, row.id).read_text() == "hf_canary"


def test_the_commit_of_a_download_is_shown(signed_in: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        row = seeds.checkpoint(session, seeds.project(session, "Routing"))
        row.origin = {"kind": "hub", "repo_id": "a/b", "revision": "main", "commit": "c0ffee" * 6}
        place = f"/projects/routing/checkpoints/{row.id}"
    page = signed_in.get(place).text
    assert "<dt>Commit</dt>" in page
    assert f'data-copy="{"c0ffee" * 6}"' in page
    assert signed_in.get(f"/api/v1{place}").json()["origin"]["commit"] == "c0ffee" * 6
