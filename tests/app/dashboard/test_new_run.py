"""The new run page: values good enough to start, presets, refusals, clones, three at once."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.dashboard import new_run
from app.projects.models import Project
from app.specs.training import RunSpec
from app.web.deps import Services
from tests.app.dashboard.conftest import Workshop
from tests.support import made_rows

RUNS = "/projects/support-router/runs"
PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}


def values_of(page: str) -> dict[str, Any]:
    """Return what a browser would send from the form of a page."""
    start = page.find('<form id="run-form"')
    form = page[max(start, 0) :].partition("</form>")[0]
    found: dict[str, Any] = {}
    for tag in re.findall(r"<input[^>]*>", form):
        name, value = (re.search(rf'{key}="([^"]*)"', tag) for key in ("name", "value"))
        ticked = "checked" in tag or ('type="radio"' not in tag and 'type="checkbox"' not in tag)
        if name and ticked:
            found[name[1]] = value[1] if value else ""
    for name, options in re.findall(
        r'<select[^>]*?name="([^"]+)"[^>]*>(.*?)</select>', form, re.DOTALL
    ):
        chosen = re.search(r'value="([^"]*)" selected', options)
        found[name] = chosen[1] if chosen else ""
    return found


def answer_to(pages: TestClient, values: dict[str, Any], **changes: Any) -> str:
    """Return the form as it answers a change of some values: an address that is the form."""
    query = {k: v for k, v in values.items() if k not in ("key", "csrf_token")}
    answer = pages.get(f"{RUNS}/new", params={**query, **changes}, headers=PARTIAL)
    assert 'id="choices"' in answer.text.partition(">")[0], "the part that is swapped"
    return answer.text


@pytest.fixture
def values(pages: TestClient) -> dict[str, Any]:
    return values_of(pages.get(f"{RUNS}/new").text)


def test_untouched_values_can_be_started(pages: TestClient, values: dict[str, Any]) -> None:
    # 3 epochs of 60 conversations would be 12 steps: never fewer than 150.
    assert (values["role"], values["steps"], values["alpha"]) == ("distilled", "150", "0.7")
    assert (values["name"], values["group"]) == ("distilled", "traffic-v1")
    answer = pages.post(RUNS, data=values)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{RUNS}/1"
    page = pages.get(f"{RUNS}/1").text
    assert "distilled: forward KL, T 1, α 0.7" in page
    assert "150" in page


def test_a_second_press_starts_nothing_more(pages: TestClient, values: dict[str, Any]) -> None:
    first = pages.post(RUNS, data=values).headers["location"]
    assert pages.post(RUNS, data=values).headers["location"] == first
    assert pages.get(f"{RUNS}/2").status_code == 404


def test_three_objectives_start_together_at_equal_steps(
    pages: TestClient, values: dict[str, Any]
) -> None:
    also = ["sequence_level", "labels_only"]
    asked = answer_to(pages, values, also=also)
    assert "Start 3 runs" in asked
    answer = pages.post(RUNS, data={**values, "steps": "40", "also": also})
    assert answer.headers["location"] == f"{RUNS}?group=traffic-v1"
    page = pages.get(answer.headers["location"]).text
    for words in ("#1 distilled", "#2 sequence-level", "#3 labels-only"):
        assert words in page
    assert page.count("40 steps × 16") == 3


def test_none_starts_where_the_disk_has_no_room_for_all(
    pages: TestClient, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"name": "kd", "teacher": "teacher", "student": "student", "dataset": "traffic"}
    alone = pages.post("/api/v1/projects/support-router/runs/estimate", json=wanted).json()
    free = alone["disk_peak_bytes"] + 4_800_000  # this run and one more checkpoint
    monkeypatch.setattr("app.runs.advice.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    also = ["sequence_level", "labels_only"]
    asked = answer_to(pages, values, also=also)
    assert "“labels-only”: It takes up to" in asked
    assert "the 2 runs before it" in asked
    assert pages.post(RUNS, data={**values, "also": also}).status_code == 422
    assert pages.get(f"{RUNS}/1").status_code == 404
    assert pages.post(RUNS, data={**values, "also": also[:1]}).status_code == 303


def test_none_starts_when_one_cannot(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    with parts.sessions.begin() as session:
        project = session.get_one(Project, workshop.project_id)
        bare = made_rows.version(session, project, parts.settings, number=2, references=0)
    values = values_of(pages.get(f"{RUNS}/new").text)
    assert values["dataset_version_id"] == str(bare.id)
    asked = answer_to(pages, values, also=["labels_only"])
    assert "“labels-only”: No conversation of this version has a reference" in asked
    answer = pages.post(RUNS, data={**values, "also": ["labels_only"]})
    assert answer.status_code == 422
    assert "No conversation of this version has a reference" in answer.text
    assert pages.get(f"{RUNS}/1").status_code == 404


@pytest.mark.parametrize(
    ("role", "shown", "hidden"),
    [
        ("sequence_level", "sequence-level", "f-alpha"),
        ("labels_only", "labels-only", "f-temperature"),
        ("fine_tune", "Checkpoint to tune", "also-distilled"),
    ],
)
def test_another_kind_fills_what_follows_from_it(
    pages: TestClient, values: dict[str, Any], role: str, shown: str, hidden: str
) -> None:
    form = answer_to(pages, values, role=role)
    assert shown in form
    assert f'id="{hidden}"' not in form
    filled = values_of(form)
    assert pages.post(RUNS, data=filled).status_code == 303
    assert values_of(answer_to(pages, filled, role="distilled"))["alpha"] == "0.7"


@pytest.mark.parametrize(("depth", "layers"), [(30, "8"), (8, "")])
def test_tuning_the_teacher_trains_its_top_layers(
    pages: TestClient, parts: Services, values: dict[str, Any], depth: int, layers: str
) -> None:
    with parts.sessions.begin() as session:
        teacher = session.get_one(Checkpoint, session.get_one(Project, 1).teacher_id)
        teacher.card = {**(teacher.card or {}), "depth": depth}
    filled = values_of(answer_to(pages, values, role="fine_tune"))
    assert (filled["top_layers"], filled["teacher_id"]) == (layers, "")
    pages.post(RUNS, data=filled)
    run = pages.get("/api/v1/projects/support-router/runs/1").json()
    assert (run["role"], run["teacher_id"]) == ("fine_tune", None)
    with parts.sessions() as session:
        project = session.get_one(Project, 1)
        assert run["student_id"] == project.teacher_id


@pytest.mark.parametrize(
    ("preset", "steps", "most"),
    [("fast", "20", "200"), ("balanced", "150", ""), ("thorough", "400", "")],
)
def test_a_preset_fills_the_knobs(
    pages: TestClient, values: dict[str, Any], preset: str, steps: str, most: str
) -> None:
    typed = {**values, "steps": "7", "name": "mine", "drawn_preset": ""}
    filled = values_of(answer_to(pages, typed, preset=preset))
    assert (filled["steps"], filled["max_train_conversations"]) == (steps, most)
    assert filled["name"] == "mine"
    thorough = preset == "thorough"
    judged = ("exact_match", "4") if thorough else ("loss", "")
    assert (filled["select_by"], filled["patience"]) == judged
    # Memory decides; what costs time or works for some types only is left to the person.
    assert (filled["micro_batch_size"], filled["ranks"]) == ("", "1")
    assert not {"packing", "gradient_checkpointing"} & filled.keys()


@pytest.mark.parametrize(
    ("deciding", "role", "judge"),
    [
        ("field_f1", "distilled", "field_f1"),
        ("agreement", "labels_only", "agreement"),
        ("kl", "distilled", "kl"),
        ("kl", "labels_only", "loss"),
    ],
)
def test_the_thorough_preset_judges_as_the_project_decides(
    deciding: str, role: str, judge: str
) -> None:
    choices = new_run.Choices([], [], None, deciding)
    asked = {**new_run.DEFAULTS, "role": role, "preset": "thorough"}
    assert new_run.with_preset(choices, asked)["select_by"] == judge


def test_runs_beside_one_judged_by_kl_are_judged_by_what_they_have(
    pages: TestClient, values: dict[str, Any]
) -> None:
    also = ["sequence_level", "labels_only"]
    pages.post(RUNS, data={**values, "select_by": "kl", "also": also})
    runs = [pages.get(f"/api/v1/projects/support-router/runs/{n}").json() for n in (1, 2, 3)]
    judges = [r["spec"]["training"]["schedule"]["select_by"] for r in runs]
    assert judges == ["kl", "loss", "loss"]
    wrong = pages.post(RUNS, data={**values, "role": "sequence_level", "select_by": "kl"})
    assert "Validation KL needs a teacher term" in at_field(wrong.text, "select_by")


def test_a_large_version_gets_its_epochs() -> None:
    class Funnel:
        id, state = 1, "frozen"
        funnel = {"splits": {"train": 16_000}}  # noqa: RUF012 - a stand-in

    choices = new_run.Choices([], [Funnel()], None)  # type: ignore[list-item]
    asked = {**new_run.DEFAULTS, "dataset_version_id": "1", "preset": "balanced"}
    # 3 epochs × 16,000 ÷ 16 a step.
    assert new_run.with_preset(choices, asked)["steps"] == "3000"
    assert new_run.with_preset(choices, {**asked, "preset": "thorough"})["steps"] == "8000"


@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("steps", "many", "Must be a whole number."),
        ("alpha", "1.5", "Must be at most 1."),
        ("alpha", "0", "it is sequence-level"),
        ("beta1", "x", "Must be a number."),
        ("temperatures", "2, 4", "needs 1"),
        ("max_tokens", "", "Is needed."),
        ("student_id", "", "Choose a checkpoint."),
        ("name", "", "Is needed."),
    ],
)
def test_a_wrong_value_is_told_at_its_field_and_kept(
    pages: TestClient, values: dict[str, Any], field: str, typed: str, words: str
) -> None:
    answer = pages.post(RUNS, data={**values, field: typed})
    assert answer.status_code == 422
    assert words in answer.text
    assert f'href="#f-{field}"' in answer.text
    assert f'id="f-{field}-e"' in answer.text
    assert pages.get(f"{RUNS}/1").status_code == 404
    asked = answer_to(pages, values, **{field: typed})
    assert "disabled" in asked
    assert f'id="f-{field}-e">{words}' in asked or words in asked.partition(f'id="f-{field}-e"')[2]
    assert values_of(asked)[field] == typed


def at_field(page: str, field: str) -> str:
    """Return what is told at a field, which must be described by it."""
    control = re.search(rf'<(?:input|select)[^>]*id="f-{field}"[^>]*>', page)
    assert control is not None
    assert f"f-{field}-e" in control[0].partition('aria-describedby="')[2].partition('"')[0]
    assert 'aria-invalid="true"' in control[0]
    found = re.search(rf'id="f-{field}-e">([^<]*)<', page)
    assert found is not None
    return found[1]


def test_all_wrong_values_are_told_at_once(pages: TestClient, values: dict[str, Any]) -> None:
    wrong = {"steps": "many", "alpha": "1.5", "batch_size": "4", "micro_batch_size": "8"}
    page = answer_to(pages, values, **wrong)
    assert at_field(page, "steps") == "Must be a whole number."
    assert at_field(page, "alpha") == "Must be at most 1."
    panel = page[page.index('id="blocked"') :]
    assert '<a href="#f-steps">Steps</a>: Must be a whole number.' in panel
    assert '<a href="#f-alpha">Alpha</a>: Must be at most 1.' in panel
    # A rule of two settings is told at one of them, once both can be read.
    del wrong["steps"], wrong["alpha"]
    told = at_field(answer_to(pages, values, **wrong), "micro_batch_size")
    assert told == "Micro_batch_size must be at most batch_size."


def test_all_reasons_why_it_cannot_work_are_told_at_once(
    pages: TestClient, values: dict[str, Any]
) -> None:
    pages.post(RUNS, data=values)
    hot = {**values, "temperature": "3", "top_layers": "999", "key": "another"}
    for page in (answer_to(pages, hot), pages.post(RUNS, data=hot).text):
        assert "is not in the cache&#39;s grid" in at_field(page, "temperature")
        assert "train at most so many" in at_field(page, "top_layers")
        assert "is called “distilled” already" in at_field(page, "name")
        assert "Use temperature 1" in page
        assert "Call it “distilled-2”" in page
    assert "3 fields need a change." in page
    mended = values_of(answer_to(pages, values, set='{"name": "distilled-2"}'))
    assert pages.post(RUNS, data={**mended, "key": "another"}).headers["location"] == f"{RUNS}/2"


def test_the_way_back_to_a_started_form_shows_its_choices(
    pages: TestClient, values: dict[str, Any]
) -> None:
    mine = {**values, "steps": "33", "name": "mine", "role": "labels_only"}
    filled = values_of(answer_to(pages, mine))
    query = {**filled, "steps": "44", "name": "mine", "also": ["distilled"]}
    pages.post(RUNS, data={**query, "key": values["key"]})
    page = pages.get(f"{RUNS}/new", params=query).text
    shown = values_of(page)
    assert {k: shown[k] for k in ("steps", "name", "role")} == {
        "steps": "44", "name": "mine", "role": "labels_only",
    }  # fmt: skip
    assert re.search(r'id="also-distilled"[^>]* checked', page)
    assert "Run #1 of group “traffic-v1” is called “mine” already" in page
    assert shown["key"] != values["key"]


def test_a_kept_page_that_is_sent_with_other_choices_starts_another_run(
    pages: TestClient, values: dict[str, Any]
) -> None:
    pages.post(RUNS, data=values)
    again = pages.post(RUNS, data={**values, "steps": "40", "name": "shorter"})
    assert again.headers["location"] == f"{RUNS}/2"


def test_three_may_start_together_a_second_time(pages: TestClient, values: dict[str, Any]) -> None:
    also = ["sequence_level", "labels_only"]
    pages.post(RUNS, data={**values, "also": also})
    next_time = values_of(pages.get(f"{RUNS}/new").text)
    assert 'id="blocked"' not in answer_to(pages, next_time, also=also)
    assert pages.post(RUNS, data={**next_time, "also": also}).status_code == 303
    assert "#6 labels-only-2" in pages.get(RUNS).text


def test_a_mend_takes_the_reason_away(pages: TestClient, values: dict[str, Any]) -> None:
    hot = {**values, "temperature": "3"}
    assert "Use temperature 1" in answer_to(pages, hot)
    assert pages.post(RUNS, data=hot).status_code == 422
    filled = values_of(answer_to(pages, hot, set='{"temperature": "1"}'))
    assert filled["temperature"] == "1"
    assert pages.post(RUNS, data={**filled, "key": values["key"]}).status_code == 303
    for broken in ("{", "[1]", '{"key": "x", "role": "y"}'):
        same = answer_to(pages, {**values, "name": "other"}, set=broken)
        assert values_of(same) == values_of(answer_to(pages, {**values, "name": "other"}))


def test_other_tokenizers_turn_to_sequence_level(
    pages: TestClient, parts: Services, workshop: Workshop, values: dict[str, Any]
) -> None:
    with parts.sessions.begin() as session:
        project = session.get_one(Project, workshop.project_id)
        other = made_rows.checkpoint(session, project, "llama", tokenizer_fingerprint="f" * 64)
    asked = {**values, "student_id": str(other.id)}
    blocked = answer_to(pages, asked)
    assert "“llama” cannot learn from “teacher” token by token." in blocked
    mend = '{"kind": "ce", "alpha": "0", "ce_target": "logged"}'
    filled = values_of(answer_to(pages, asked, set=mend))
    assert filled["role"] == "sequence_level"
    assert pages.post(RUNS, data=filled).status_code == 303


def test_a_clone_keeps_every_value_and_marks_changes(pages: TestClient, workshop: Workshop) -> None:
    workshop.start(
        "kd",
        group="g1",
        training={
            "schedule": {"steps": 77, "betas": [0.8, 0.99]},
            "trainable": {"freeze_embeddings": True},
        },
    )
    page = pages.get(f"{RUNS}/new", params={"from": 1}).text
    assert "clone of #1 kd" in page
    assert "Every setting is equal." in page
    values = values_of(page)
    assert (values["steps"], values["beta1"], values["freeze_embeddings"]) == ("77", "0.8", "true")
    assert values["name"] == "kd-2"
    changed = answer_to(pages, values, steps="99")
    assert "<del>77</del>" in changed
    assert "<ins>99</ins>" in changed
    pages.post(RUNS, data={**values, "steps": "99"})
    made = pages.get(f"{RUNS}/2").text
    assert "clone of" in made
    assert "1 change" in made


def test_a_project_without_data_says_what_is_missing(pages: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        made_rows.project(session, "Bare")
    page = pages.get("/projects/bare/runs/new").text
    assert "A run needs data and checkpoints" in page
    assert "/projects/bare/checkpoints" in page
    assert pages.post("/projects/bare/runs", data={"name": "x"}).status_code == 422


def test_every_setting_of_a_spec_has_a_knob() -> None:
    """A field added to the specs must reach the form, the run page and the diff."""
    spec = RunSpec(name="x", teacher_id=1, student_id=2, dataset_version_id=3).model_dump(
        mode="json"
    )
    fixed = {
        ("name",), ("teacher_id",), ("student_id",), ("dataset_version_id",), ("group",), ("role",),
        ("training", "render", "answer"),
        ("evaluation", "pack"),
    }  # fmt: skip
    paths = set(leaves(spec)) - fixed
    assert {knob.path for knob in new_run.knobs.KNOBS} == paths


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves(part, (*path, key))]
    if isinstance(value, list) and path[-1] == "betas":
        return [(*path, str(at)) for at in range(len(value))]
    return [path]


def test_a_profile_fills_what_it_keeps(pages: TestClient, values: dict[str, Any]) -> None:
    page = values_of(answer_to(pages, values, profile="audit"))
    assert (page["k_min"], page["k_max"], page["tail_samples"]) == ("256", "256", "0")
    page = values_of(answer_to(pages, page, profile="sampled"))
    assert (page["k_min"], page["k_max"], page["tail_samples"]) == ("4", "32", "8")
    again = values_of(answer_to(pages, page, k_max="48"))
    assert (again["profile"], again["k_max"]) == ("sampled", "48")
    wrong = answer_to(pages, again, tail_samples="0")
    assert "Samples of the rest (tail_samples) belong to the profile sampled" in wrong


def test_a_run_with_a_live_teacher_fills_no_cache(
    pages: TestClient, values: dict[str, Any]
) -> None:
    page = answer_to(pages, values, teacher_from="live", temperature="1.5")
    assert "is held beside the student" in page
    assert "What the teacher cache covers" not in page
    assert 'id="fold-teacher-cache"' not in page
    assert (
        pages.post(RUNS, data={**values, "teacher_from": "live", "temperature": "1.5"}).status_code
        == 303
    )
    shown = pages.get(f"{RUNS}/1").text
    assert "forward KL to the live teacher, T 1.5, α 0.7" in shown
    assert "Fill the teacher cache" not in shown
