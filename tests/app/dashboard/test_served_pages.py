"""Pages and API of a checkpoint behind a server: form, card, key, runs, caches; what is unknown."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.checkpoints import service
from app.checkpoints.models import Checkpoint
from app.datasets.models import Upload
from app.jobs.models import Job
from app.projects.models import Project
from app.specs.checkpoint import CheckpointCard, ServerFacts
from app.specs.jobs import GenerateJob, JobKind
from app.specs.teacher import CacheReport, CaptureProfile
from app.teacher_cache import service as cache
from app.web.deps import Services
from tests.support import made_rows, seeds

BASE = "/projects/routing"
NEW = f"{BASE}/checkpoints/new"
API = "/api/v1/projects/routing"
FORM = {
    "kind": "endpoint",
    "base_url": "https://vllm.example:8000/v1/",
    "model": "org/big",
    "tokenizer": "org/big@v2",
    "at_once": "4",
    "api_key": "sk-canary",
    "revision": "main",
    "role": "teacher",
}
FACTS = ServerFacts(
    base_url="https://vllm.example:8000/v1",
    model="org/big",
    at_once=4,
    top=20,
    tokenizer_check="The server encodes 3 texts to the same ids.",
)
TEXT_ONLY = FACTS.model_copy(update={"top": None, "why_text_only": "No tokenizer is named for it."})
UNKNOWN = dict.fromkeys(
    (
        *("architecture", "parameters_total", "parameters_embedding", "parameters_compute"),
        *("depth", "width", "ffn_width", "heads", "kv_heads", "dtype", "bytes"),
    )
)
ORIGIN = {"kind": "endpoint", "base_url": FACTS.base_url, "model": FACTS.model, "tokenizer": None}


def card(facts: ServerFacts = FACTS, **changes: Any) -> CheckpointCard:
    values = {**made_rows.card().model_dump(), **UNKNOWN, "server": facts, **changes}
    return CheckpointCard.model_validate(values)


def text_only() -> CheckpointCard:
    unknown = ("tokenizer_entries", "tokenizer_fingerprint", "template_fingerprint", "vocabulary")
    return card(TEXT_ONLY, **dict.fromkeys((*unknown, "eos_token", "context_length")))


@pytest.fixture
def project(parts: Services) -> Project:
    with parts.sessions.begin() as session:
        return seeds.project(session)


@pytest.fixture
def set_up(parts: Services, project: Project) -> Callable[[CheckpointCard], dict[str, int]]:
    """Make a served teacher, a student and a frozen version."""

    def make(found: CheckpointCard) -> dict[str, int]:
        with parts.sessions.begin() as session:
            owner = session.get_one(Project, project.id)
            teacher = seeds.checkpoint(session, owner, "served", card=found, origin=ORIGIN)
            changed = {"weights_fingerprint": "d" * 64}
            student = made_rows.checkpoint(session, owner, "student", **changed)
            version = made_rows.version(session, owner, parts.settings)
            owner.teacher_id, owner.student_id = teacher.id, student.id
            return {"teacher": teacher.id, "student": student.id, "version": version.id}

    return make


@pytest.mark.usefixtures("project")
def test_the_form_registers_a_server_and_keeps_its_key_apart(
    signed_in: TestClient, parts: Services
) -> None:
    page = signed_in.get(NEW).text
    for words in ("A server", "Base URL", "Served model", "Its tokenizer", "Requests at once"):
        assert words in page
    answer = signed_in.post(f"{NEW}/register", data=FORM)
    assert answer.status_code == 303, answer.text
    number = int(answer.headers["location"].rpartition("/")[2])
    with parts.sessions() as session:
        row = session.get_one(Checkpoint, number)
        job = session.get_one(Job, row.job_id)
        assert row.name == "big"
        assert row.origin == {
            "kind": "endpoint",
            "base_url": "https://vllm.example:8000/v1",
            "model": "org/big",
            "tokenizer": {"kind": "hub", "repo_id": "org/big", "revision": "v2"},
            "at_once": 4,
        }
        assert "sk-canary" not in str((row.origin, job.spec, job.title))
    file = service.key_file(parts.settings, number)
    assert file.read_text() == "vllm.example:8000\nsk-canary"
    assert file.stat().st_mode & 0o777 == 0o600
    shown = signed_in.get(answer.headers["location"]).text
    assert "Server https://vllm.example:8000/v1, org/big" in shown
    assert "sk-canary" not in shown


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"base_url": ""}, "base_url", "Is needed"),
        ({"base_url": "ftp://x"}, "base_url", "http or https"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "base_url", "STILLHOUSE_ENDPOINT_HOSTS"),
        ({"base_url": "http://169.254.169.254/v1"}, "base_url", "no request may reach"),
        ({"base_url": "http://u:p@host/v1"}, "base_url", "its own field"),
        ({"model": " "}, "model", "Is needed"),
        ({"tokenizer": "not a place"}, "tokenizer", "owner/name[@revision]"),
        ({"at_once": "0"}, "at_once", ""),
        ({"api_key": "kéy"}, "api_key", ""),
    ],
)
def test_a_server_that_cannot_be_one_is_told_at_its_field(
    signed_in: TestClient, change: dict[str, str], field: str, words: str
) -> None:
    answer = signed_in.post(f"{NEW}/register", data=FORM | change)
    assert answer.status_code == 422
    assert f'id="f-{field}-e"' in answer.text
    assert words in answer.text.replace("&#39;", "'")
    assert "sk-canary" not in answer.text


def test_a_new_project_may_name_a_served_teacher(signed_in: TestClient, parts: Services) -> None:
    form = {"name": "Fresh", "goal": "task_specialisation", "deciding_metric": "exact_match"}
    answer = signed_in.post(
        "/projects", data={**FORM, **form, "tolerance": "2", "student_kind": "none"}
    )
    assert answer.status_code == 303, answer.text
    with parts.sessions() as session:
        row = session.query(Checkpoint).filter_by(name="big").one()
        assert row.origin["kind"] == "endpoint"
        assert service.has_key(parts.settings, row.id)


def test_the_page_says_what_the_server_can_do_and_what_nobody_knows(
    signed_in: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    ids = set_up(card())
    page = signed_in.get(f"{BASE}/checkpoints/{ids['teacher']}").text
    for words in (
        "Logit distillation with the top 20 a token at T = 1, and text.",
        "gives rows",
        "The server encodes 3 texts to the same ids.",
        "weights on the server",
        "none kept",
    ):
        assert words in page, words
    assert page.count("unknown") >= 6
    assert "Use as student" not in page
    assert "Fine-tune it" not in page
    assert ">0<" not in page
    listed = signed_in.get(f"{BASE}/checkpoints").text
    assert "server, top 20 at T = 1" in listed
    assert "unknown" in listed
    student = signed_in.get(f"{BASE}/checkpoints/{ids['student']}").text
    assert "How much smaller it is cannot be told" in student
    home = signed_in.get(BASE).text
    assert "Logit distillation with the top 20" in home


def test_sizes_of_a_config_make_it_comparable(
    signed_in: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    known = {"parameters_total": 9_000_000, "parameters_compute": 8_000_000}
    ids = set_up(card(**known))
    student = signed_in.get(f"{BASE}/checkpoints/{ids['student']}").text
    assert "8.0× less compute per token, 7.5× fewer parameters in total." in student


def test_a_text_only_page_says_so(
    signed_in: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    ids = set_up(text_only())
    page = signed_in.get(f"{BASE}/checkpoints/{ids['teacher']}").text
    assert "Text only: sequence-level. No tokenizer is named for it." in page
    student = signed_in.get(f"{BASE}/checkpoints/{ids['student']}").text
    assert "The tokenizer of the served teacher is not known" in student


def test_the_key_is_replaced_and_forgotten_on_the_page_and_by_the_api(
    signed_in: TestClient,
    api_client: TestClient,
    parts: Services,
    set_up: Callable[..., dict[str, int]],
) -> None:
    ids = set_up(card())
    here, there = f"{BASE}/checkpoints/{ids['teacher']}", f"{API}/checkpoints/{ids['teacher']}"
    file = service.key_file(parts.settings, ids["teacher"])
    assert signed_in.post(f"{here}/key", data={"api_key": "sk-one"}).status_code == 303
    assert file.read_text().endswith("\nsk-one")
    page = signed_in.get(here).text
    assert "kept, not shown" in page
    assert "sk-one" not in page
    signed_in.post(f"{here}/key", data={"api_key": ""})
    assert file.read_text().endswith("\nsk-one"), "an empty field changes nothing"
    answer = api_client.put(f"{there}/key", json={"api_key": "sk-two"})
    assert (answer.status_code, "sk-two" in answer.text) == (200, False)
    assert file.read_text().endswith("\nsk-two")
    signed_in.post(f"{here}/key", data={"api_key": "", "forget": "true"})
    assert not file.exists()
    refused = api_client.put(f"{API}/checkpoints/{ids['student']}/key", json={"api_key": "k"})
    assert (refused.status_code, "is not behind a server" in refused.text) == (409, True)
    broken = api_client.put(f"{there}/key", json={"api_key": "a\nb"})
    assert broken.status_code == 422


def run_body(ids: dict[str, int], **changes: Any) -> dict[str, Any]:
    return {
        "name": "kd",
        "teacher": ids["teacher"],
        "student": ids["student"],
        "dataset": ids["version"],
        **changes,
    }


def test_a_run_form_starts_within_what_the_server_gives(
    signed_in: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    set_up(card())
    page = signed_in.get(f"{BASE}/runs/new").text
    assert (
        'name="temperatures" type="text" inputmode="decimal" autocomplete="off" value="1"' in page
    )
    assert 'name="k_max" type="text" inputmode="numeric" autocomplete="off" value="20"' in page
    assert "Behind a server. Logit distillation with the top 20" in page
    assert "Rows are asked of https://vllm.example:8000/v1: the top 20 a token at most" in page
    assert "it gets no row of its own in the comparison" in page
    assert "How much smaller the student is cannot be told" in page
    assert 'id="blocked"' not in page


def test_another_temperature_or_k_is_refused_with_its_mend(
    signed_in: TestClient, api_client: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    ids = set_up(card())
    found = api_client.post(f"{API}/runs/estimate", json=run_body(ids)).json()
    reasons = {reason["field"]: reason for reason in found["reasons"]}
    assert "log-probabilities at T = 1 only" in reasons["temperatures"]["sentence"]
    assert reasons["temperatures"]["mends"][0]["values"] == {
        "temperatures": "1",
        "temperature": "1",
    }
    assert (
        "at most 20 log-probabilities a token, and a row may keep 32"
        in reasons["k_max"]["sentence"]
    )
    assert reasons["k_max"]["mends"][0]["values"] == {"k_max": "20", "k_min": "4"}
    within = run_body(ids, capture={"k_max": 20, "temperatures": [1.0]})
    assert api_client.post(f"{API}/runs/estimate", json=within).json()["reasons"] == []
    query = {"name": "kd", "role": "distilled", "teacher_id": ids["teacher"], "k_max": "32"}
    query |= {"student_id": ids["student"], "dataset_version_id": ids["version"]}
    page = signed_in.get(f"{BASE}/runs/new", params=query).text
    assert "Use T = 1" in page
    mended = signed_in.get(
        f"{BASE}/runs/new",
        params=query | {"set": '{"temperatures": "1", "temperature": "1", "k_max": "20"}'},
    ).text
    assert 'id="blocked"' not in mended


@pytest.mark.parametrize(
    ("changes", "field", "label"),
    [
        ({"capture": {"name": "sampled", "temperatures": [1.0]}}, "profile", "Use standard"),
        ({"capture": {"name": "dense", "temperatures": [1.0]}}, "profile", "Use standard"),
        ({"capture": {"name": "audit", "temperatures": [1.0]}}, "profile", "Use standard"),
        ({"training": {"objective": {"teacher": "live"}}}, "teacher_from", "Use stored rows"),
        ({"training": {"render": {"max_tokens": 2048}}}, "max_tokens", "Use 2,047"),
    ],
)
def test_what_a_server_cannot_serve_is_refused_with_its_mend(
    api_client: TestClient,
    set_up: Callable[..., dict[str, int]],
    changes: dict[str, Any],
    field: str,
    label: str,
) -> None:
    ids = set_up(card())
    body = run_body(ids, **{"capture": {"k_max": 20, "temperatures": [1.0]}, **changes})
    [reason] = api_client.post(f"{API}/runs/estimate", json=body).json()["reasons"]
    assert (reason["field"], [mend["label"] for mend in reason["mends"]]) == (field, [label])


def test_a_text_only_teacher_is_refused_with_sequence_level_as_mend(
    api_client: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    ids = set_up(text_only())
    found = api_client.post(f"{API}/runs/estimate", json=run_body(ids)).json()
    [reason] = found["reasons"]
    assert "“served” is a text-only endpoint" in reason["sentence"]
    assert [mend["label"] for mend in reason["mends"]] == ["Use sequence-level"]
    refused = api_client.post(f"{API}/runs", json=run_body(ids))
    assert refused.status_code == 409
    objective = {"kind": "ce", "alpha": 0.0}
    allowed = run_body(ids, training={"objective": objective})
    assert api_client.post(f"{API}/runs", json=allowed).status_code in (200, 201, 202)
    titles = [job["title"] for job in api_client.get("/api/v1/jobs").json()]
    assert not any(title == "Evaluate teacher" for title in titles), "nothing here can score it"


def test_a_served_checkpoint_is_no_student_and_nothing_is_cut_from_it(
    api_client: TestClient, signed_in: TestClient, set_up: Callable[..., dict[str, int]]
) -> None:
    ids = set_up(card(architecture="LlamaForCausalLM"))
    body = run_body(ids) | {"student": ids["teacher"], "teacher": ids["student"]}
    found = api_client.post(f"{API}/runs/estimate", json=body).json()
    assert "a student is trained here and needs its weights" in str(found["reasons"])
    cut = {"name": "s", "teacher_id": ids["teacher"], "prune": {"depth": 1}}
    refused = api_client.post(f"{API}/checkpoints/students", json=cut)
    assert (refused.status_code, "no weights here" in refused.text) == (422, True)
    assert "served: " not in signed_in.get(f"{NEW}?way=prune").text


def test_the_caches_page_says_where_rows_come_from(
    api_client: TestClient,
    signed_in: TestClient,
    parts: Services,
    set_up: Callable[..., dict[str, int]],
) -> None:
    ids = set_up(card())
    profile = CaptureProfile(k_max=20, temperatures=(1.0,))
    with parts.sessions.begin() as session:
        space = cache.space_of(card(), profile)
        cache.open_space(session, space, teacher_id=ids["teacher"])
        row = session.get_one(cache.CacheSpaceRow, space.address)
        report = CacheReport(
            entries=1, rows=9, new_entries=1, new_rows=9, bytes=1, seconds=1.0, mean_entropy=1.25
        )
        row.report = report.model_dump(mode="json")
    page = signed_in.get(f"{BASE}/caches").text
    for words in (
        "asked of a server",
        "A server: the top 20 a token at most, one bucket for the rest, T = 1 only.",
        "≥ 1.25 nats",
        "a lower bound",
    ):
        assert words in page, words
    [found] = api_client.get(f"{API}/caches").json()
    assert found["served"] is True


def test_addresses_of_caches_cover_url_model_tokenizer_k_and_that_it_is_a_server() -> None:
    profile = CaptureProfile(k_max=20, temperatures=(1.0,))
    base = cache.space_of(card(), profile).address
    others = [
        cache.space_of(card(weights_fingerprint="e" * 64), profile),
        cache.space_of(card(tokenizer_fingerprint="e" * 64), profile),
        cache.space_of(card(), profile.model_copy(update={"k_max": 19})),
        cache.space_of(card().model_copy(update={"server": None}), profile),
    ]
    assert len({base, *(space.address for space in others)}) == 5


def test_a_checkpoint_answers_an_upload_by_its_page(
    signed_in: TestClient, parts: Services, set_up: Callable[..., dict[str, int]], project: Project
) -> None:
    ids = set_up(text_only())
    here = f"{BASE}/checkpoints/{ids['teacher']}"
    assert "Upload the prompts first" in signed_in.get(here).text
    with parts.sessions.begin() as session:
        stored = Upload(
            project_id=project.id,
            key="k" * 32,
            filename="asked.jsonl",
            size=3,
            state="uploaded",
            origin="uploaded",
        )
        session.add(stored)
        session.flush()
        number = stored.id
    page = signed_in.get(here).text
    assert "asked.jsonl" in page
    assert "Answers at once" not in page, "a server has its own number"
    assert "Answers at once" in signed_in.get(f"{BASE}/checkpoints/{ids['student']}").text
    form = {"prompts_upload_id": number, "max_new_tokens": "9", "temperature": "0.5", "seed": "4"}
    wrong = signed_in.post(f"{here}/answer", data=form | {"max_new_tokens": "0"})
    assert (wrong.status_code, 'id="f-max_new_tokens-e"' in wrong.text) == (422, True)
    answer = signed_in.post(f"{here}/answer", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{BASE}/datasets")
    with parts.sessions() as session:
        job = session.query(Job).filter_by(kind=JobKind.GENERATE).one()
    spec = GenerateJob.model_validate(job.spec)
    assert (spec.checkpoint_id, spec.prompts_upload_id) == (ids["teacher"], number)
    assert (spec.max_new_tokens, spec.temperature, spec.seed) == (9, 0.5, 4)
    assert "asked-answers.jsonl" in signed_in.get(f"{BASE}/datasets").text
