"""The compare page in every state: order, columns, links, curves, CSV, speed."""

import csv
import io
import re
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.dashboard.compare_charts import Curve, charts_of
from app.specs.jobs import JobState
from app.specs.training import RunSpec
from app.web.deps import Services
from tests.support import made_rows
from tests.support.made_evaluations import World

PAGE = "/projects/support-router/compare"
EVIL = "<script>alert(1)</script>"
PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}


@pytest.fixture
def world(parts: Services, tmp_path: Path) -> Iterator[World]:
    with parts.sessions() as session:
        yield World.make(session, parts.settings, tmp_path)
        session.commit()


@pytest.fixture
def three(world: World) -> World:
    """Three runs of one group that have ended, of 100 conversations each."""
    for name, alpha, target, right in (
        ("kd", 0.7, "logged", 95),
        ("seq", 0.0, "logged", 90),
        ("labels", 0.0, "reference", 60),
    ):
        run = world.start(name, alpha, target=target)
        world.anchors()
        world.finish(run, right)
    world.session.commit()
    return world


def rows_of(text: str) -> list[str]:
    """Return the names down the table."""
    found = re.findall(r'<th scope="row" class="runcol">.*?class="strong"[^>]*>(.*?)</', text)
    return [unescape(name).strip() for name in found]


def heads_of(text: str) -> list[str]:
    table = text[text.index("<thead>") : text.index("</thead>")]
    return [unescape(h) for h in re.findall(r"<a [^>]*>([^<]*?)(?: <span|</a>)", table)]


def link(text: str, pattern: str) -> str:
    found = re.search(rf'<a [^>]*?href="([^"]*)"[^>]*?{pattern}', text)
    assert found is not None, pattern
    return unescape(found[1])


def test_no_runs_yet(world: World, signed_in: TestClient) -> None:
    world.session.commit()
    text = signed_in.get(PAGE).text
    assert "Nothing to compare yet" in text
    assert "/projects/support-router/runs/new" in text


@pytest.mark.usefixtures("three")
def test_the_sentence_comes_first_and_the_baseline_leads(signed_in: TestClient) -> None:
    text = signed_in.get(PAGE).text
    # No pair differs: two pseudo-observations of 1/100, times t(99).
    assert (
        "It is not proven that kd is within 2 points of teacher on Exact match: 0.0, "
        "95\u00a0% interval −2.8 to +2.8, n\u00a0100."
    ) in text
    assert text.index("It is not proven that kd") < text.index("<table")
    assert rows_of(text) == ["#3 labels", "teacher", "#1 kd", "#2 seq", "undistilled"]
    # labels against kd: 35 of 100 wins, √(22.75·100/99 + 2)/100 · t(99) = 9.917 points.
    assert "▲ +35.0" in text
    assert "[+25.1, +44.9]" in text
    assert "test set of traffic@1, n\u00a0100" in text
    assert "Holm over 3 comparisons" in text
    assert f"{PAGE}?format=csv" in text


def test_a_cell_says_why_it_has_no_verdict(world: World, signed_in: TestClient) -> None:
    runs = [world.start(name) for name in ("kd", "seq")]
    labels = world.start("labels", 0.0, target="reference")
    world.anchors(undistilled=87)
    for run, right in zip((*runs, labels), (87, 87, 95), strict=True):
        world.finish(run, right)
    world.session.commit()
    text = unescape(signed_in.get(PAGE, params={"diff": "0"}).text)
    row = text[text.index(">#1 kd<") : text.index(">#2 seq<")]
    why = "interval leaves out 0, but 3 comparisons were made at once"
    assert re.search(rf'≈ −4.0</span> .*?title="The {why}[^"]*">Holm, 3 comparisons<', row)
    assert "no evidence" in row
    assert 'title="It was measured at other times.">timed apart<' in row
    assert text.count(f"Holm, 3 comparisons: the {why}") == 1


@pytest.mark.usefixtures("three")
def test_equal_and_empty_columns_are_hidden_and_shown_again(signed_in: TestClient) -> None:
    text = signed_in.get(PAGE).text
    heads = heads_of(text)
    assert heads[2] == "Exact match"
    assert {"α", "T", "Trained on", "Objective"} <= set(heads)
    assert not {"Steps", "Seed", "Generation speed", "Student"} & set(heads)
    hidden = re.search(r"(\d+) equal columns hidden", text)
    assert hidden is not None
    every = heads_of(signed_in.get(PAGE, params={"diff": "0"}).text)
    assert len(every) == len(heads) + int(hidden[1])
    # Computed over the rows shown now: with one run nothing that was set differs.
    alone = heads_of(signed_in.get(PAGE, params={"run": "kd"}).text)
    assert not {"α", "T", "Trained on"} & set(alone)


@pytest.mark.usefixtures("three")
def test_sorting_keeps_the_baseline_and_says_so(signed_in: TestClient) -> None:
    text = signed_in.get(PAGE, params={"sort": "kl", "order": "asc"}).text
    assert rows_of(text) == ["#3 labels", "teacher", "#1 kd", "#2 seq", "undistilled"]
    assert text.count('aria-sort="ascending"') == 1
    turned = link(text, r">KL to teacher")
    text = signed_in.get(turned).text
    assert rows_of(text) == ["#3 labels", "teacher", "undistilled", "#2 seq", "#1 kd"]
    assert text.count('aria-sort="descending"') == 1
    by_name = signed_in.get(PAGE, params={"sort": "name", "order": "asc"}).text
    assert rows_of(by_name)[2:] == ["#1 kd", "#2 seq", "undistilled"]
    for key in ("alpha", "verdict", "answers"):
        assert signed_in.get(PAGE, params={"sort": key, "order": "asc"}).status_code == 200


@pytest.mark.usefixtures("three")
def test_the_address_holds_baseline_and_rows(signed_in: TestClient) -> None:
    text = signed_in.get(PAGE).text
    based = link(text, 'aria-label="Make seq the baseline"')
    assert based == f"{PAGE}?baseline=2"
    text = signed_in.get(based).text
    assert rows_of(text)[:2] == ["#2 seq", "teacher"]
    assert "higher or lower than seq" in text
    less = link(text, 'aria-label="Remove labels"')
    text = signed_in.get(less).text
    assert rows_of(text) == ["#2 seq", "teacher", "#1 kd", "undistilled"]
    assert '<option value="3">#3 labels</option>' in text
    # Its own baseline goes with a row.
    gone = link(text, 'aria-label="Remove seq"')
    assert "baseline" not in gone
    assert signed_in.get(f"{PAGE}?run=nothing").status_code == 404


def test_a_cell_leads_to_the_examples_behind_it(three: World, signed_in: TestClient) -> None:
    kd, labels = (e.id for e in (three.of_run(run) for run in three.runs("kd", "labels")))
    text = unescape(signed_in.get(PAGE).text)
    href = f"/projects/support-router/evaluations/{kd}?metric=field_f1&against={labels}"
    assert f'href="{href}#examples"' in text
    shown = signed_in.get(href)
    assert shown.status_code == 200
    assert "Wins 35" in unescape(shown.text)


def test_waiting_failed_and_unlike_rows(three: World, signed_in: TestClient) -> None:
    newer = made_rows.version(three.session, three.project, three.settings, number=2)
    other = three.start("other", version=newer)
    three.anchors(90)
    three.finish(other, 80)
    waiting, broken = three.start("waiting"), three.start("broken")
    for job in three.jobs(broken):
        if job.kind == "train":
            made_rows.bring_to(three.session, job.id, JobState.RUNNING)
            made_rows.bring_to(three.session, job.id, JobState.FAILED, message="No memory.")
    three.session.commit()
    names = ["kd", "seq", "other", "waiting", "broken"]
    text = signed_in.get(PAGE, params={"run": names}).text
    assert rows_of(text)[-3:] == [
        "#4 other",
        f"#{waiting.number} waiting",
        f"#{broken.number} broken",
    ]
    assert "! left out: other set" in text
    assert "other is left out: it was evaluated on traffic@2, teacher on traffic@1." in text
    assert 'class="st st-failed"' in text
    only = signed_in.get(PAGE, params={"run": "waiting"}).text
    assert "No row has been evaluated yet." in only
    assert rows_of(only) == [f"#{waiting.number} waiting"]


def test_without_the_teacher_nothing_is_said_of_the_tolerance(
    world: World, signed_in: TestClient
) -> None:
    world.finish(world.start("kd"), 90)
    world.session.commit()
    text = signed_in.get(PAGE).text
    assert "The teacher is not evaluated on this set yet" in text
    assert "kd is not compared: there is no other row." in text
    assert rows_of(text) == ["#1 kd"]


def test_over_seeds_the_verdict_is_about_the_recipe(world: World, signed_in: TestClient) -> None:
    for seed, (kd, labels) in enumerate([(95, 60), (94, 58), (96, 63)]):
        for name, alpha, target, right in (
            ("kd", 0.7, "logged", kd),
            ("labels", 0.0, "reference", labels),
        ):
            run = world.start(f"{name}, seed {seed}", alpha, target=target, seed=seed)
            world.anchors()
            world.finish(run, right)
    world.session.commit()
    text = signed_in.get(PAGE).text
    card = text[text.index('id="seeds-t"') :].partition("</section>")[0]
    assert "kd (3 seeds) is better than labels (3 seeds)" in text
    assert "The verdict is about this recipe, over 3 seeds and these conversations." in card
    assert "another seed may differ" in text, "of the checkpoints above"
    names = re.findall(r'class="strong">([^<]*)<', card)
    assert names == ["labels (3 seeds)", "teacher", "undistilled", "kd (3 seeds)"]
    assert "tokens/s" not in card
    # One seed that is left out takes the card away.
    chosen = signed_in.get(PAGE, params={"run": ["1", "2", "3", "4"]}).text
    assert "Over seeds" not in chosen
    assert "another seed may differ" in chosen


def test_a_run_that_was_stopped_is_no_repeat_of_its_recipe(
    world: World, signed_in: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [world.start(f"kd, seed {seed}", seed=seed) for seed in range(3)]
    world.anchors()
    for run in runs:
        world.finish(run, 95)
    world.session.commit()
    assert "Over seeds" in signed_in.get(PAGE).text
    states = {run.id: JobState.SUCCEEDED.value for run in runs}
    states[runs[1].id] = JobState.CANCELLED.value  # its weights were kept, and evaluated later
    monkeypatch.setattr("app.evaluations.queries.states_of", lambda *_: states)
    assert "Over seeds" not in signed_in.get(PAGE).text


@pytest.mark.usefixtures("three")
def test_partial_requests_get_the_block(signed_in: TestClient) -> None:
    text = signed_in.get(PAGE, headers=PARTIAL).text
    assert re.match(r'\s*<div hx-nonce="[^"]+" id="compare"', text)
    assert "<html" not in text
    assert rows_of(text)[0] == "#3 labels"


@pytest.mark.usefixtures("three")
def test_the_csv_has_the_rows_and_settings_shown(signed_in: TestClient) -> None:
    answer = signed_in.get(PAGE, params={"format": "csv", "sort": "exact_match", "order": "asc"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"))))
    assert [row["name"] for row in rows] == ["labels", "teacher", "undistilled", "seq", "kd"]
    kd = rows[-1]
    assert (kd["α"], kd["Trained on"], kd["Exact match (%)"]) == ("0.7", "logged answers", "95.0")
    assert float(kd["Exact match minus labels"]) == pytest.approx(35)
    assert kd["Exact match minus labels verdict"] == "better"
    assert float(kd["Exact match minus labels low"]) == pytest.approx(25.083, abs=0.001)
    assert rows[1]["α"] == ""


@pytest.mark.usefixtures("three")
def test_markdown_is_a_table_with_intervals(signed_in: TestClient, api_client: TestClient) -> None:
    text = signed_in.get(PAGE, params={"format": "md"}).text
    lines = text.splitlines()
    assert lines[0].startswith("| Name | Role | Exact match % |")
    assert lines[4].startswith("| kd | distilled | 95.0 (88.7 … 97.9) n 100 |")
    assert len({line.count("|") for line in lines}) == 1
    assert api_client.get(f"/api/v1{PAGE[:-7]}comparison?format=md").text == text


def test_hostile_names_are_text(world: World, signed_in: TestClient) -> None:
    run = world.start(EVIL, group=EVIL)
    world.anchors()
    world.finish(run, 90)
    world.curve(run, "train/kd_loss", [1.0, 0.5])
    other = world.start("kd", group="g2")
    world.finish(other, 80)
    world.session.commit()
    text = signed_in.get(PAGE, params={"run": [EVIL, "kd"]}).text
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "'=" not in signed_in.get(PAGE, params={"format": "csv"}).text


def spec(
    alpha: float, temperature: float = 1.0, target: str = "logged", teacher: str = "cache"
) -> RunSpec:
    training = {
        "objective": {
            "kind": "forward_kl" if alpha else "ce",
            "alpha": alpha,
            "temperature": temperature,
            "teacher": teacher,
            "ce_target": target,
        },
        "render": {"answer": target},
    }
    return RunSpec.model_validate(
        {
            "name": "x",
            "teacher_id": 1,
            "student_id": 2,
            "dataset_version_id": 3,
            "training": training,
        }
    )


def test_only_like_quantities_share_an_axis() -> None:
    points = {"train/kd_loss": [(1, 2.0)], "train/ce_loss": [(1, 1.0)], "train/loss": [(1, 3.0)]}
    curves = [
        Curve("a", 0, spec(0.7), "traffic@1", points),
        Curve("b", 1, spec(0.5), "traffic@1", points),
        Curve("c", 2, spec(0.5, temperature=2.0), "traffic@1", points),
        Curve("d", 3, spec(0.7), "traffic@2", points),
        Curve("e", 4, spec(0.7, teacher="live"), "traffic@1", points),
    ]
    charts, note = charts_of(curves)
    shared = {chart.title: [s["label"] for s in chart.series] for chart in charts}
    assert shared == {
        "KD loss, T 1, standard rows, traffic@1": ["a", "b"],
        "CE loss, logged answers, traffic@1": ["a", "b", "c", "e"],
    }
    assert [s["colour"] for s in charts[1].series] == [0, 1, 2, 4]
    assert note is not None
    assert "KD loss of c" in note
    alone, nothing = charts_of(curves[:1])
    assert [chart.title for chart in alone] == ["KD loss", "CE loss", "Training loss"]
    assert nothing is None


def grow(world: World, first: int, last: int) -> None:
    for n in range(first, last):
        run = world.start(f"r{n}", group="big")
        world.anchors()
        world.finish(run, 60 + n)
        world.curve(run, "train/kd_loss", [1.0, 0.5])
    world.session.commit()


def test_the_same_queries_however_many_rows(
    world: World, signed_in: TestClient, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    counts = []
    for first, last in ((0, 1), (1, 4)):
        grow(world, first, last)
        counts.append(count_queries(lambda: signed_in.get(PAGE)))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_thirty_rows_of_every_column_are_quick(world: World, signed_in: TestClient) -> None:
    grow(world, 0, 30)
    signed_in.get(PAGE, params={"diff": "0"})
    began = time.perf_counter()
    text = signed_in.get(PAGE, params={"diff": "0"}).text
    assert time.perf_counter() - began < 2
    assert len(rows_of(text)) == 32
