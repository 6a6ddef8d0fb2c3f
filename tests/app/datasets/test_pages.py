"""The data pages under StrictUndefined, in every state; queries stay constant; content is text."""

import json
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.datasets import service
from app.datasets.models import DatasetVersion, Upload
from app.jobs.models import Job
from app.specs.jobs import JobState
from tests.app.datasets.made import BODY, Made, finish, line, stored

HOME = "/projects/routing/datasets"
EVIL = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>'
PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}


def page(client: TestClient, path: str, **headers: str) -> str:
    answer = client.get(HOME + path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.usefixtures("made")
def test_without_data_the_page_says_what_to_do(signed_in: TestClient) -> None:
    text = page(signed_in, "")
    assert "No data yet" in text
    assert text.count("btn-primary") == 1
    assert "Choose files" in page(signed_in, "/new")
    assert "3 · Import" not in page(signed_in, "/new")
    assert signed_in.get("/projects/other/datasets").status_code == 404


def test_the_index_shows_uploads_and_versions_in_every_state(
    signed_in: TestClient, made: Made
) -> None:
    with made.session() as (session, project):
        service.start_upload(session, project, filename=EVIL, size=9, settings=made.settings)
        stored(session, project, made.settings, name="waiting.jsonl")
    made.upload(b"free text\nand more\n", "notes.txt")
    made.version()
    made.importing()
    lost = made.importing()
    with made.session() as (session, _):
        job = session.get_one(Job, session.get_one(DatasetVersion, lost).job_id)
        finish(session, job, JobState.FAILED, "The worker was lost.")
    frozen = made.version()
    with made.session() as (session, _):
        service.frozen(session, frozen, "ab" * 32)
    text = page(signed_in, "")
    for words in ("on its way", "being looked at", "not understood", "draft", "importing"):
        assert words in text
    assert "The worker was lost." in text, "a lost job leaves no version importing for ever"
    assert "frozen" in text
    assert "<img" not in text.replace('<img src="/static', "")
    assert 'hx-trigger="every 3s"' in text, "what moves is fetched again"


def test_the_index_takes_the_same_queries_however_long(signed_in: TestClient, made: Made) -> None:
    made.upload()
    made.version()
    few = queries_of(made, lambda: page(signed_in, ""))
    for _ in range(4):
        made.upload()
        made.version()
    assert queries_of(made, lambda: page(signed_in, "")) == few


def test_the_import_page_takes_the_same_queries_however_many_uploads(
    signed_in: TestClient, made: Made, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    ids: list[int] = []
    counts = []
    for more in (1, 5):
        ids += [made.upload(name=f"log-{more}-{number}.jsonl") for number in range(more)]
        chosen = urlencode({"known_ids": ids, "upload_ids": ids}, doseq=True)
        counts.append(
            [count_queries(lambda a=a: page(signed_in, a)) for a in ("/new", f"/new?{chosen}")]
        )
    text = page(signed_in, "/new")
    assert all(f"log-5-{number}.jsonl" in text for number in range(5))
    assert counts[0] == counts[1]


def queries_of(made: Made, act: Callable[[], object]) -> int:
    statements: list[str] = []

    def note(_c: object, _k: object, text: str, *_rest: object) -> None:
        statements.append(text)

    event.listen(made.parts.engine, "before_cursor_execute", note)
    act()
    event.remove(made.parts.engine, "before_cursor_execute", note)
    assert statements
    return len(statements)


def test_more_than_a_page_of_versions_is_paged(signed_in: TestClient, made: Made) -> None:
    first = made.version()
    with made.session() as (session, _):
        like = session.get_one(DatasetVersion, first)
        session.add_all(
            DatasetVersion(
                dataset_id=like.dataset_id, number=number, state="draft", funnel=like.funnel,
                import_spec=like.import_spec, notes="",
            )
            for number in range(2, 53)
        )  # fmt: skip
    text = page(signed_in, "")
    assert "v52" in text
    assert " v2<" not in text
    link = text.split('rel="next" href="')[1].split('"')[0]
    assert " v2<" in signed_in.get(link.replace("&amp;", "&")).text


def test_the_import_page_previews_and_keeps_its_choices_in_the_address(
    signed_in: TestClient, made: Made
) -> None:
    body = b"prompt,completion,label\n" + b"".join(
        f"ask {n},say {n},truth {n}\n".encode() for n in range(8)
    )
    upload = made.upload(body, "pairs.csv")
    text = page(signed_in, "/new")
    assert "prompt completion" in text
    assert "★ label: truth 0 (8 of 8)" in text
    assert "ask 0" in text
    assert "Start import</button>" in text
    assert "disabled aria-describedby" not in text
    query = f"?known_ids={upload}&upload_ids={upload}&reference_path=label&record=2&validation=5"
    text = page(signed_in, f"/new{query}")
    assert "Record 3 of 5" in text
    assert "ask 2" in text
    assert ">truth 2<" in text, "the reference stands beside the answer"
    assert 'value="5"' in text
    part = page(signed_in, f"/new{query}&view=json", **PARTIAL)
    assert "<html" not in part
    assert "prompt" in part
    unchecked = page(signed_in, f"/new?known_ids={upload}")
    assert "Off: no file is stored and chosen." in unchecked


def test_files_of_two_formats_are_not_imported_together(signed_in: TestClient, made: Made) -> None:
    made.upload()
    made.upload(b"prompt,completion\na,b\nc,d\n", "pairs.csv")
    assert "Choose files of one format." in page(signed_in, "/new")


def test_a_file_of_no_known_format_wants_one_named(signed_in: TestClient, made: Made) -> None:
    upload = made.upload(b"free text\nand more\n", "notes.txt")
    assert "Off: no file is stored and chosen." in page(signed_in, "/new"), "not chosen by itself"
    query = f"/new?known_ids={upload}&upload_ids={upload}"
    assert "“notes.txt” is in no known format." in page(signed_in, query).split("Off:")[1]
    assert "Off:" not in page(signed_in, f"{query}&format=openai_chat")


def test_an_import_starts_by_a_form_and_a_refused_form_keeps_what_was_typed(
    signed_in: TestClient, made: Made
) -> None:
    upload = str(made.upload())
    form = {"upload_ids": upload, "known_ids": upload, "into": "*", "name": "tickets"}
    bad = signed_in.post(HOME, data={**form, "validation": "60", "test": "20"})
    assert bad.status_code == 422
    assert "Must be at most 50." in bad.text
    assert 'value="tickets"' in bad.text
    none = signed_in.post(HOME, data={"known_ids": upload, "into": "*", "name": " "})
    assert none.status_code == 422
    assert "Choose at least one file" in none.text
    assert "Give the new dataset a name" in none.text
    both = signed_in.post(HOME, data={**form, "validation": "50", "test": "45"})
    assert "at most 90" in both.text
    good = signed_in.post(HOME, data={**form, "validation": "5", "test": "25"})
    assert good.status_code == 303
    with made.session() as (session, _):
        version = session.query(DatasetVersion).one()
        assert version.import_spec["validation_share"] == pytest.approx(0.05)
        assert version.import_spec["test_share"] == pytest.approx(0.25)
        assert service.get_view(session, 1, version.id).version.dataset.name == "tickets"
    again = page(signed_in, f"/new?again={version.id}")
    assert "tickets: becomes v2" in again
    assert f'value="{upload}" aria-label="Import log.jsonl" checked' in again


def test_unsafe_requests_want_the_token(signed_in: TestClient, made: Made) -> None:
    version = made.version()
    upload = made.upload()
    with made.session() as (session, _):
        key = session.get_one(Upload, upload).key
    del signed_in.headers["X-CSRF-Token"]
    paths = ("", f"/{version}/freeze", f"/{version}/retry", f"/{version}/cancel")
    for path in (*paths, f"/uploads/{key}/drop"):
        answer = signed_in.post(HOME + path, data={"name": "x"})
        assert answer.status_code == 403, path
    token = page(signed_in, "").split('data-csrf="')[1].split('"')[0]
    sent = signed_in.post(f"{HOME}/{version}/freeze", data={"csrf_token": token})
    assert sent.status_code == 303


def test_another_logged_model_is_told_before_and_after(signed_in: TestClient, made: Made) -> None:
    call = {
        "request": {"model": "big", "messages": [{"role": "user", "content": "hi"}]},
        "response": {
            "model": "other-70b",
            "choices": [{"message": {"role": "assistant", "content": "yo"}}],
        },
    }
    body = json.dumps(call).encode() + b"\n"
    with made.session() as (session, project):
        teacher = Checkpoint(
            project_id=project.id,
            name="big",
            state="ready",
            origin={"kind": "folder", "path": "/m"},
        )
        session.add(teacher)
        session.flush()
        project.teacher_id = teacher.id
    made.upload(body)
    assert "Another model answered." in page(signed_in, "/new")
    text = page(signed_in, f"/{made.version(body)}")
    assert "Another model answered." in text
    assert "other-70b" in text
    with made.session() as (session, project):
        session.get_one(Checkpoint, project.teacher_id).name = "Other-70B"
    assert "Another model answered." not in page(signed_in, "/new")


def test_a_version_shows_its_work_its_failure_and_the_way_on(
    signed_in: TestClient, made: Made
) -> None:
    version = made.importing()
    text = page(signed_in, f"/{version}")
    assert "data-live-progress" in text
    assert "Stop the import" in text
    assert "Being handed to a worker." in text
    assert f"{version}/events?after=" in text
    assert signed_in.post(f"{HOME}/{version}/retry").status_code == 409
    assert signed_in.post(f"{HOME}/{version}/cancel").status_code == 303
    text = page(signed_in, f"/{version}")
    assert "It was cancelled." in text
    assert "Change the choices" in text
    assert text.count("btn-primary") == 1
    before = made.job_of(version)
    assert signed_in.post(f"{HOME}/{version}/retry").status_code == 303
    assert made.job_of(version) != before
    assert "Stop the import" in page(signed_in, f"/{version}")
    with made.session() as (session, _):
        job = session.get_one(Job, session.get_one(DatasetVersion, version).job_id)
        finish(session, job, JobState.FAILED, "“log” is in no known format.")
    assert "“log” is in no known format." in page(signed_in, f"/{version}", **PARTIAL)


def test_a_draft_shows_a_funnel_that_adds_up_and_its_rejects(
    signed_in: TestClient, made: Made
) -> None:
    version = made.version(BODY + b"\nalso not json\n")
    text = page(signed_in, f"/{version}")
    assert "123 records = 120 calls + 0 duplicates + 1 skipped + 2 quarantined" in text
    assert "Rejects by reason" in text
    assert "lines 121, 123" in text
    assert "blank line" in text
    part = page(signed_in, f"/{version}?reason=not_json", **PARTIAL)
    assert "also not json" in part
    assert "blank line" not in part.split('id="rejects"')[1]
    download = signed_in.get(f"/api/v1/projects/routing/versions/{version}/rejects")
    found = [json.loads(line) for line in download.text.splitlines()]
    assert [(r["line"], r["source"]) for r in found] == [(n, "log.jsonl") for n in (121, 122, 123)]


def test_freezing_is_offered_done_once_and_then_a_fact(signed_in: TestClient, made: Made) -> None:
    version = made.version()
    assert "Freeze traffic v1" in page(signed_in, f"/{version}")
    assert signed_in.post(f"{HOME}/{version}/freeze").status_code == 303
    text = page(signed_in, f"/{version}")
    assert "Freezing is off: It is being frozen." in text
    assert signed_in.post(f"{HOME}/{version}/freeze").status_code == 409
    with made.session() as (session, _):
        job = session.get_one(Job, session.get_one(DatasetVersion, version).job_id)
        service.frozen(session, version, "ab" * 32)
        finish(session, job, JobState.SUCCEEDED)
    text = page(signed_in, f"/{version}")
    assert "Content hash" in text
    assert text.count("btn-primary") == 1
    assert "New run" in text
    assert "Freeze traffic" not in text


def test_a_failed_freeze_says_so_and_can_be_repeated(signed_in: TestClient, made: Made) -> None:
    version = made.version()
    signed_in.post(f"{HOME}/{version}/freeze")
    with made.session() as (session, _):
        job = session.get_one(Job, session.get_one(DatasetVersion, version).job_id)
        finish(session, job, JobState.FAILED, "The worker was lost.")
    text = page(signed_in, f"/{version}")
    assert "Freezing failed." in text
    assert "The worker was lost." in text
    assert signed_in.post(f"{HOME}/{version}/freeze").status_code == 303


def test_what_a_version_lacks_is_said(signed_in: TestClient, made: Made) -> None:
    text = page(signed_in, f"/{made.version(validation_share=0, test_share=0)}")
    assert "No validation conversations." in text
    assert "No test conversations." in text
    untaught = line(1).replace(b'"assistant"', b'"assistant", "weight": 0')
    text = page(signed_in, f"/{made.version(untaught)}")
    assert "Freezing is off: No turn in it is a target" in text


def test_conversations_are_filtered_searched_paged_and_opened(
    signed_in: TestClient, made: Made
) -> None:
    version = made.version()
    text = page(signed_in, f"/{version}/conversations")
    assert "120 of 120 match" in text
    assert "Next 50" in text
    after = page(signed_in, f"/{version}/conversations?after=99")
    assert after.count("data-row id=") == 20
    found = page(signed_in, f"/{version}/conversations?search=ANSWER%2077&turns=1")
    assert "1 of 120 match" in found
    assert "question 77" in found
    none = page(signed_in, f"/{version}/conversations?search=zzz&reference=true")
    assert "Nothing matches" in none
    assert "the search “zzz”" in none
    opened = page(signed_in, f"/{version}/conversations?open=7")
    assert "answer 7<" in opened
    assert 'aria-current="true">question 7<' in opened
    assert page(signed_in, f"/{version}/conversations?split=nonsense&open=&turns=9")
    assert signed_in.get(f"{HOME}/{version}/conversations?open=120").status_code == 404
    panel = page(signed_in, f"/{version}/conversations/7?show=json", **PARTIAL)
    assert "<table" not in panel
    assert "&#34;role&#34;: &#34;user&#34;" in panel
    alone = signed_in.get(f"{HOME}/{version}/conversations/7?split=train")
    assert alone.headers["location"].endswith("/conversations?split=train&open=7")


def test_the_api_lists_conversations_with_their_counts(signed_in: TestClient, made: Made) -> None:
    address = f"/api/v1/projects/routing/versions/{made.version()}/conversations"
    first = signed_in.get(address).json()
    facets = first["facets"]
    assert (facets["total"], facets["matching"], len(first["lines"])) == (120, 120, 50)
    assert sum(facets["split"].values()) == 120
    assert facets["reference"] == {"false": 120}
    assert facets["turns"] == {"1": 120}
    found = signed_in.get(address, params={"search": "answer 77", "split": "test"}).json()["facets"]
    assert found["matching"] == found["split"].get("test", 0)
    assert (found["total"], sum(found["split"].values())) == (120, 1)
    assert signed_in.get(address, params={"after": first["next_after"]}).json()["facets"] is None


def test_the_conversation_list_takes_the_same_queries_however_long(
    signed_in: TestClient, made: Made
) -> None:
    few, many = made.version(line(1)), made.version()
    counts = [
        queries_of(made, lambda v=v: page(signed_in, f"/{v}/conversations")) for v in (few, many)
    ]
    assert counts[0] == counts[1]
    shown = [queries_of(made, lambda v=v: page(signed_in, f"/{v}")) for v in (few, many)]
    assert shown[0] == shown[1]


def test_hostile_content_stays_text_everywhere(signed_in: TestClient, made: Made) -> None:
    tool = {
        "id": "1",
        "type": "function",
        "function": {"name": EVIL, "arguments": f'{{"a": "{1}"}}'},
    }
    messages = [
        {"role": "system", "content": EVIL},
        {"role": "user", "content": EVIL},
        {"role": "assistant", "content": None, "tool_calls": [tool]},
        {"role": "tool", "tool_call_id": "1", "content": EVIL},
        {"role": "assistant", "content": EVIL * 40},
    ]
    record = {"messages": messages, "metadata": {"reference": EVIL, EVIL: EVIL}}
    body = json.dumps(record).encode() + b"\n" + EVIL.encode() + b"\n"
    version = made.version(body, reference_path="metadata.reference")
    upload = made.upload(body, f"{EVIL}.jsonl")
    paths = (
        "", "/new", f"/new?reference_path=metadata.reference&known_ids={upload}&upload_ids={upload}",
        "/new?record=1", "/new?view=json", f"/{version}", f"/{version}?reason=not_json",
        f"/{version}/conversations?open=0", f"/{version}/conversations?open=0&show=json",
        f"/{version}/conversations?search=%3Cscript%3E",
    )  # fmt: skip
    for path in paths:
        text = page(signed_in, path)
        assert 'onerror="window' not in text, path
        assert "<script>window" not in text, path
    assert "Show all" in page(signed_in, f"/{version}/conversations?open=0")


def test_a_removed_upload_is_gone_and_one_in_use_stays(signed_in: TestClient, made: Made) -> None:
    upload = made.upload()
    with made.session() as (session, _):
        key = session.get_one(Upload, upload).key
    answer = signed_in.post(f"{HOME}/uploads/{key}/drop")
    assert answer.status_code == 204
    assert "dropped" in answer.headers["hx-trigger"]
    assert signed_in.post(f"{HOME}/uploads/{key}/drop").status_code == 404
