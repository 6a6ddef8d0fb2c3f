"""The evaluation report and list: metrics, examples, filters, every state, hostile text."""

import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from app.datasets.service import conversations_path
from app.evaluations.models import Evaluation
from app.evaluations.service import examples_path
from app.specs.conversation import Conversation, Message
from app.specs.dataset_file import to_row
from app.specs.jobs import JobState
from app.web.deps import Services
from tests.support import made_rows
from tests.support.made_evaluations import World

LIST = "/projects/support-router/evaluations"
API = "/api/v1" + LIST
EVIL = '<script>alert(1)</script> <img src=x onerror="alert(2)">'
PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}


@pytest.fixture
def world(parts: Services, tmp_path: Path) -> Iterator[World]:
    with parts.sessions() as session:
        yield World.make(session, parts.settings, tmp_path)
        session.commit()


@pytest.fixture
def kd(world: World) -> Evaluation:
    """A distilled run of 90 right beside a teacher of 95; it answers conversation 3 with markup."""
    run = world.start("kd")
    world.anchors()
    world.answers = {3: EVIL, 97: "right after all"}
    found = world.finish(run, 90)
    world.answers = {}
    world.session.commit()
    return found


def test_metrics_stand_beside_the_teachers(kd: Evaluation, signed_in: TestClient) -> None:
    text = unescape(signed_in.get(f"{LIST}/{kd.id}").text)
    assert "It is not proven that kd is within 2 points of teacher on Exact match: −5.0" in text
    assert "kd is better than undistilled on Exact match: +90.0" in text
    plain = re.sub(r"<[^>]+>|\s+", " ", text)
    # 5 of 100 lost: Σ(d − mean)² = 4.75, × 100/99, and two pseudo-observations: ±5.2 points.
    assert re.search(r"90\.0 +82\.4 … 94\.5 +95\.0 +−5\.0 +\[−10\.2, \+0\.2\] +0\.0 +100", plain)
    assert "KL per target token" in plain
    assert "batches" in plain
    assert plain.count("not compared") == 1


def test_it_says_where_only_the_number_of_comparisons_withholds_a_verdict(
    world: World, signed_in: TestClient
) -> None:
    run = world.start("kd")
    world.anchors(undistilled=87)
    found = world.finish(run, 87)
    world.session.commit()
    text = unescape(signed_in.get(f"{LIST}/{found.id}").text)
    line = text[text.index(">Field F1<") : text.index(">KL to teacher<")]
    why = "interval leaves out 0, but 2 comparisons were made at once"
    assert "no evidence</span>" in line
    assert re.search(rf'title="The {why}[^"]*">Holm, 2 comparisons<', line)
    assert f"Holm, 2 comparisons: the {why}" in text


def test_losses_are_read_worst_first_with_a_diff(kd: Evaluation, signed_in: TestClient) -> None:
    text = unescape(signed_in.get(f"{LIST}/{kd.id}", params={"outcome": "losses"}).text)
    # The teacher is right up to 94: we lose 90 to 94 and the answer of markup.
    assert "▼ Losses 6" in text
    assert "▲ Wins 0" in text
    assert re.findall(r'id="x(\d+)"', text) == ["1", "2", "3", "4", "5", "6"]
    assert re.findall(r'<code title="(c\d+)"', text) == [
        *("c0003", "c0090", "c0091", "c0092", "c0093", "c0094"),
    ]
    assert '{"queue": "<ins>lost</ins>", "order": 90}' in text
    assert '{"queue": "<del>claim</del>", "order": 90}' in text
    assert '{"queue": "lost", "order": 90}' in text
    assert "Where is parcel 90" in text


def test_hostile_answers_are_text(kd: Evaluation, signed_in: TestClient) -> None:
    text = signed_in.get(f"{LIST}/{kd.id}", params={"search": "onerror"}).text
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;" in text
    assert text.count("data-row ") == 1
    none = signed_in.get(f"{LIST}/{kd.id}", params={"search": EVIL * 2}).text
    assert "No example is left" in none
    assert EVIL not in none


def test_filters_and_pages(kd: Evaluation, signed_in: TestClient) -> None:
    address = f"{LIST}/{kd.id}"
    wrong = unescape(signed_in.get(address, params={"wrong": "1"}).text)
    assert "1 to 11 of 11" in wrong
    first = unescape(signed_in.get(address).text)
    assert "1 to 20 of 100" in first
    after = re.search(r'rel="next" href="([^"]+)"', first)
    assert after is not None
    second = unescape(signed_in.get(after[1]).text)
    assert "21 to 40 of 100" in second
    assert f'rel="prev" href="{address}?metric=exact_match#examples"' in second
    assert signed_in.get(address, params={"metric": "bleu"}).status_code == 422
    assert signed_in.get(address, params={"against": 999}).status_code == 404
    block = signed_in.get(address, headers=PARTIAL).text
    assert re.match(r'\s*<section hx-nonce="[^"]+" class="card" id="examples"', block)


@pytest.mark.parametrize("metric", ["field_f1", "kl", "agreement", "ece"])
def test_every_score_orders_examples(kd: Evaluation, signed_in: TestClient, metric: str) -> None:
    answer = signed_in.get(f"{LIST}/{kd.id}", params={"metric": metric, "outcome": "losses"})
    assert "▼ Losses 6" in unescape(answer.text)


def test_the_teacher_has_nothing_beside_it(
    kd: Evaluation, world: World, signed_in: TestClient
) -> None:
    (teacher,) = (e for e in world.all_evaluations() if e.role == "teacher")
    text = signed_in.get(f"{LIST}/{teacher.id}").text
    assert "Losses" not in text
    assert text.count("data-row ") == 20
    beside = signed_in.get(f"{LIST}/{teacher.id}", params={"against": kd.id}).text
    assert "▲ Wins 6" in unescape(beside)


def test_the_whole_prompt_of_an_example(
    world: World, signed_in: TestClient, api_client: TestClient
) -> None:
    tool = {"type": "function", "function": {"name": "find_parcel"}}
    conversation = Conversation(
        messages=(
            Message(role="system", content="Be brief. " * 90 + "<b>END OF THE RULES</b>"),
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Hi", is_target=True, reference="Good day"),
            Message(role="user", content="Where is it? " * 60),
            Message(role="assistant", content="THE ANSWER", is_target=True),
            Message(role="user", content="thanks"),
        ),
        tools=(tool,),
    )
    rows = [to_row(c) for c in (*made_rows.conversations(), conversation)]
    stored = conversations_path(world.version, world.settings)
    pq.write_table(pa.Table.from_pylist(rows), stored, row_group_size=8)
    world.ids = {0: conversation.id}
    found = world.finish(world.start("kd"), 90)
    world.session.commit()

    whole = f"{LIST}/{found.id}/prompts/{conversation.id}"
    examples = signed_in.get(f"{LIST}/{found.id}", params={"search": "parcel 0"}).text
    assert f'href="{whole}"' in examples
    page, part = signed_in.get(whole), signed_in.get(whole, headers=PARTIAL)
    assert page.status_code == 200
    assert "<h1>Prompt" in page.text
    assert part.text.lstrip().startswith("<details")
    for text in (page.text, part.text):
        assert "&lt;b&gt;END OF THE RULES&lt;/b&gt;" in text
        assert "Whole prompt: 4 messages, 1,710 characters" in unescape(text)
        assert "find_parcel" in text
        for word in ("THE ANSWER", "Good day", "thanks", ">target<"):
            assert word not in text
    data = api_client.get(f"/api/v1{whole}").json()
    assert [m["role"] for m in data["messages"]] == ["system", "user", "assistant", "user"]
    assert data["messages"][3]["content"] == "Where is it? " * 60
    assert data["tools"] == [tool]
    assert api_client.get(f"{API}/{found.id}/prompts/c0001").status_code == 404
    stored.unlink()
    assert "are gone" in api_client.get(f"/api/v1{whole}").json()["message"]


def test_examples_over_rest(kd: Evaluation, api_client: TestClient) -> None:
    found = api_client.get(f"{API}/{kd.id}/examples", params={"outcome": "losses", "limit": 2})
    data = found.json()
    assert (data["total"], data["losses"], data["wins"], data["ties"]) == (6, 6, 0, 94)
    assert (data["ties_right"], data["ties_wrong"], data["not_scored"]) == (89, 5, 0)
    one = data["examples"][0]
    assert (one["prediction"], one["outcome"], one["score"], one["other_score"]) == (
        *(EVIL, "loss"),
        *(0.0, 1.0),
    )
    shown = api_client.get(f"{API}/{kd.id}").json()
    assert (shown["name"], shown["run"], shown["set_name"]) == ("kd", 1, "traffic@1")
    assert shown["cells"]["exact_match"] == {
        "value": 0.9,
        "low": pytest.approx(0.824, abs=0.001),
        "high": pytest.approx(0.945, abs=0.001),
        "n": 100,
        "excluded": 0,
    }
    assert len(api_client.get(API).json()) == 3
    assert api_client.get(f"{API}/999").status_code == 404
    states = {s: len(api_client.get(API, params={"state": s}).json()) for s in ("done", "failed")}
    assert states == {"done": 3, "failed": 0}
    wrong = api_client.get(API, params={"state": "finished"})
    assert wrong.status_code == 422
    assert "'pending', 'done' or 'failed'" in wrong.json()["fields"]["state"]


@pytest.mark.parametrize("place", [LIST, API])
def test_the_raw_file_is_a_download(
    kd: Evaluation, signed_in: TestClient, tmp_path: Path, place: str
) -> None:
    answer = signed_in.get(f"{place}/{kd.id}/examples.parquet")
    assert answer.status_code == 200
    path = tmp_path / "raw.parquet"
    path.write_bytes(answer.content)
    assert pq.read_table(path)["prediction"][3].as_py() == EVIL


def test_pending_failed_and_lost_reports(world: World, signed_in: TestClient) -> None:
    pending, failed, lost = (world.start(name) for name in ("pending", "failed", "lost"))
    training = next(job for job in world.jobs(failed) if job.kind == "train")
    made_rows.bring_to(world.session, training.id, JobState.RUNNING)
    made_rows.bring_to(world.session, training.id, JobState.FAILED, message="No memory.")
    gone = world.finish(lost, 90)
    examples_path(gone, world.settings).unlink()
    world.session.commit()
    ids = [world.of_run(run).id for run in (pending, failed)]
    waiting = signed_in.get(f"{LIST}/{ids[0]}")
    assert "Not evaluated yet" in waiting.text
    assert f'hx-get="{LIST}/{ids[0]}?part=report" hx-trigger="every 3s"' in waiting.text
    assert "This evaluation failed" in signed_in.get(f"{LIST}/{ids[1]}").text
    assert signed_in.get(f"{LIST}/{ids[0]}/examples.parquet").status_code == 409
    answer = signed_in.get(f"{LIST}/{gone.id}")
    assert answer.status_code == 200
    assert "no longer stored" in answer.text
    assert signed_in.get(f"{LIST}/777").status_code == 404


def test_a_waiting_page_becomes_the_report(world: World, signed_in: TestClient) -> None:
    run = world.start("kd")
    world.anchors()
    found = world.of_run(run)
    world.session.commit()
    address = f"{LIST}/{found.id}"
    part = signed_in.get(address, params={"part": "report"}, headers=PARTIAL).text
    assert 'id="report" hx-get=' in part
    assert "<html" not in part
    assert "Not evaluated yet" in part
    for job in world.jobs(run):
        made_rows.bring_to(world.session, job.id, JobState.SUCCEEDED)
        if job.kind == "train":
            break
    (job,) = (job for job in world.jobs(run) if job.id == found.job_id)
    made_rows.bring_to(world.session, job.id, JobState.RUNNING)
    job.progress = {"done": 3, "total": 10}
    world.session.commit()
    working = signed_in.get(address).text
    assert "Its job is running. " in working
    assert "3 of 10" in working
    world.finish(run, 90)
    world.session.commit()
    part = signed_in.get(address, params={"part": "report"}, headers=PARTIAL).text
    assert 'id="report">' in part
    assert "every 3s" not in part
    for words in ('id="metrics-t"', 'id="examples"', "90.0"):
        assert words in part


def test_a_failed_evaluation_of_no_run_is_tried_again_on_its_page(
    world: World, signed_in: TestClient
) -> None:
    world.start("kd")
    (teacher,) = (e for e in world.all_evaluations() if e.role == "teacher")
    assert teacher.job_id is not None
    for state in (JobState.RUNNING, JobState.FAILED):
        made_rows.bring_to(world.session, teacher.job_id, state, message="No memory.")
    world.session.commit()
    address, retry = f"{LIST}/{teacher.id}", f"{LIST}/{teacher.id}/retry"
    failed = signed_in.get(address).text
    assert "No memory." in failed
    assert f'action="{retry}"' in failed
    answer = signed_in.post(retry)
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    again = signed_in.get(address).text
    assert "Not evaluated yet" in again
    assert retry not in again
    assert signed_in.post(f"{LIST}/999/retry").status_code == 404
    world.session.refresh(teacher)
    assert teacher.state == "pending"
    assert signed_in.post(retry).status_code == 409


def test_the_list_takes_the_same_queries_however_long(
    world: World, signed_in: TestClient, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    world.session.commit()
    assert "No evaluations yet" in signed_in.get(LIST).text
    counts = []
    for names in (["a"], [f"b{n}" for n in range(9)]):
        for name in names:
            run = world.start(name)
            world.anchors()
            world.finish(run, 80)
        world.session.commit()
        counts.append(count_queries(lambda: signed_in.get(LIST)))
    assert counts[0] == counts[1]
    assert signed_in.get(LIST, headers=PARTIAL).text.lstrip().startswith('<div id="rows"')
    found = signed_in.get(LIST, params={"search": "b3"}).text
    assert found.count("data-row>") == 1
    assert "No evaluation is called so" in signed_in.get(LIST, params={"search": "zz"}).text
    for key in ("name", "role", "state", "id"):
        assert signed_in.get(LIST, params={"sort": key}).status_code == 200


def test_the_report_takes_the_same_queries_however_many_examples(
    world: World, signed_in: TestClient, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    few = world.finish(world.start("few"), 3, n=4)
    many = world.finish(world.start("many"), 150, n=200)
    world.session.commit()
    counts = [count_queries(lambda e=e: signed_in.get(f"{LIST}/{e.id}")) for e in (few, many)]
    assert counts[0] == counts[1]
