"""Projects in the browser: list, new with its teacher, home in every state, edit; queries."""

from collections.abc import Callable
from datetime import datetime

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.accounts.models import User
from app.checkpoints.models import Checkpoint
from app.jobs.models import Job
from app.projects import queries, service
from app.projects.models import Project
from app.specs.checkpoint import PruneSpec
from app.specs.jobs import JobKind, JobState
from app.specs.pruning import pruned_card
from app.teacher_cache.models import CacheCoverage, CacheShard, CacheSpaceRow
from app.web.deps import Services
from app.web.tables import encode_key
from tests.support import seeds

HOME = "/projects/routing"
PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}
FORM = {
    "name": "Routing",
    "goal": "cost_cut",
    "deciding_metric": "exact_match",
    "tolerance": "2",
    "kind": "none",
}


def grow(session: Session, project: Project, upto: str) -> None:
    """Bring a project to a stage of the main job; each stage holds the ones before it."""
    stages = ("teacher", "upload", "draft", "frozen", "student", "running", "evaluated")
    wanted = stages.index(upto)
    if wanted >= 0:
        service.use_as(session, project, "teacher", seeds.checkpoint(session, project, "big").id)
    version = None
    if wanted >= 2:
        version = seeds.version(session, project, state="frozen" if wanted >= 3 else "draft")
    if wanted >= 4:
        small = pruned_card(seeds.CARD, PruneSpec(depth=6))
        row = seeds.checkpoint(session, project, "small", card=small)
        service.use_as(session, project, "student", row.id)
    if wanted >= 5:
        state = JobState.RUNNING if upto == "running" else JobState.SUCCEEDED
        run = seeds.run(session, project, 1, state=state, name="kd", group="g")
        if upto == "evaluated" and version is not None:
            seeds.evaluation(
                session, project, version.id, role="teacher", name="teacher", right=190
            )
            seeds.evaluation(
                session, project, version.id, role="distilled", name="kd", right=190, run_id=run.id
            )


def make(parts: Services, upto: str | None = None, name: str = "Routing") -> Project:
    with parts.sessions.begin() as session:
        owner = session.scalar(select(User))
        project = seeds.project(session, name, owner.id if owner else None)
        if upto is not None:
            grow(session, project, upto)
        return project


def test_an_empty_list_says_how_to_start(signed_in: TestClient) -> None:
    page = signed_in.get("/projects").text
    assert "No projects yet" in page
    assert page.count('href="/projects/new"') == 2
    assert signed_in.get("/").headers["location"] == "/projects"


def test_the_list_shows_state_verdict_checkpoints_runs_and_owner(
    signed_in: TestClient, parts: Services
) -> None:
    make(parts, "evaluated")
    make(parts, name=seeds.EVIL)
    page = signed_in.get("/projects").text
    assert "<script>alert" not in page
    for words in (
        "&lt;script&gt;",
        "needs a teacher",
        "none yet",
        "✓</span> within 2 points",
        "kd is within 2 points of teacher on Exact match",
        "5.0×",
        "→ small",
        ">ada</td>",
        "intervals are 95 %",
    ):
        assert words in page, words
    found = signed_in.get("/projects?search=BIG", headers=PARTIAL).text
    assert "Routing" in found
    assert "&lt;script&gt;" not in found
    assert "<html" not in found
    assert "No name, teacher or owner holds “zz%”." in signed_in.get("/projects?search=zz%25").text
    by_name = signed_in.get("/projects?sort=name&order=asc").text
    assert by_name.index("&lt;script&gt;") < by_name.index("Routing")


def test_the_list_goes_on_page_by_page_in_every_order(
    signed_in: TestClient, parts: Services
) -> None:
    with parts.sessions.begin() as session:
        for number in range(60):
            seeds.project(session, f"P{number:02}")
    for order in ("", "sort=name&order=asc", "sort=runs&order=desc"):
        first = signed_in.get(f"/projects?{order}").text
        rest = first.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
        second = signed_in.get(rest).text
        names = [f"P{n:02}" for n in range(60)]
        assert [(f">{n}<" in first) + (f">{n}<" in second) for n in names] == [1] * 60


@pytest.mark.parametrize(
    ("upto", "title", "label", "tail"),
    [
        (None, "Register the teacher", "Register the teacher", "checkpoints/new"),
        ("teacher", "Upload a log of the teacher&#39;s traffic", "Upload a log", "datasets/new"),
        ("draft", "Look over traffic v1, then freeze it", "Look over the data", "datasets/1"),
        (
            "frozen",
            "Cut the student out of the teacher",
            "Cut a student",
            "checkpoints/new?way=prune",
        ),
        ("student", "Start the first run", "New run", "runs/new"),
        ("running", "Watch #1 kd", "Open the run", "runs/1"),
        ("evaluated", "Read the report of kd", "Compare the runs", "compare"),
    ],
)
def test_the_home_names_the_one_next_action(
    signed_in: TestClient, parts: Services, upto: str | None, title: str, label: str, tail: str
) -> None:
    make(parts, upto)
    page = signed_in.get(HOME).text
    assert page.count("Next action") == 1
    assert page.count("btn-primary") == 1
    assert f'<h2 id="next-action">{title}</h2>' in page
    assert f'<a class="btn btn-primary" href="{HOME}/{tail}">{label}' in page
    assert page.count('aria-current="step"') == 1
    assert ("The way from here" in page) == (upto not in ("running", "evaluated"))


def test_a_newcomer_reaches_every_next_action(signed_in: TestClient, parts: Services) -> None:
    """Each address that a home or a checkpoint names is a page."""
    make(parts, "evaluated")
    for tail in (
        "edit",
        "checkpoints/new",
        "checkpoints/new?way=prune",
        "checkpoints/1",
        "datasets/new",
        "datasets",
        "checkpoints",
        "runs/new",
        "runs/new?role=fine_tune&student=2",
        "runs",
        "compare",
    ):
        assert signed_in.get(f"{HOME}/{tail}").status_code == 200, tail


def test_trouble_is_the_next_action(signed_in: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        bad = seeds.project(session, "Bad teacher")
        row = seeds.checkpoint(session, bad, card=None, error="The folder <b>/x</b> is gone.")
        service.use_as(session, bad, "teacher", row.id)
        late = seeds.project(session, "Late teacher")
        grow(session, late, "frozen")
        waits = seeds.checkpoint(
            session,
            late,
            "new",
            card=None,
            made_by=seeds.job(session, late, JobState.QUEUED, kind=JobKind.REGISTER),
        )
        service.use_as(session, late, "teacher", waits.id)
        broken = seeds.project(session, "Broken run")
        grow(session, broken, "student")
        seeds.run(session, broken, 1, state=JobState.FAILED)
        unsure = seeds.project(session, "Choose")
        seeds.checkpoint(session, unsure)
        failed = seeds.project(session, "Import")
        grow(session, failed, "teacher")
        version = seeds.version(session, failed, state="failed")
        version.error = "The file is no JSON."
    for slug, words in (
        ("bad-teacher", ("Mend the teacher", "The folder &lt;b&gt;/x", "st-failed")),
        ("late-teacher", ("Wait for new", "Watch the teacher")),
        ("broken-run", ("Mend #1 kd", "It broke.")),
        ("choose", ("Choose the teacher", "/projects/choose/edit")),
        ("import", ("Mend traffic v1", "The file is no JSON.")),
    ):
        page = signed_in.get(f"/projects/{slug}").text
        for word in words:
            assert word in page, (slug, word)


def test_the_home_shows_verdict_runs_jobs_data_checkpoints_and_cache(
    signed_in: TestClient, parts: Services
) -> None:
    project, before = make(parts, "evaluated"), make(parts, name="Filled it before")
    with parts.sessions.begin() as session:
        found = session.get(Project, project.id)
        assert found is not None
        found.description = seeds.EVIL
        labels = seeds.run(session, found, 2, name="labels", role="labels_only", group="g")
        seeds.evaluation(
            session, found, 1, role="labels_only", name="labels", right=100, run_id=labels.id
        )
        seeds.job(session, found, JobState.QUEUED, title=seeds.EVIL)
        other = seeds.checkpoint(session, session.get_one(Project, before.id), "same weights")
        weights = {"weights_fingerprint": other.weights_fingerprint}
        session.add(CacheSpaceRow(address="a", spec=weights, teacher_id=other.id))
        session.flush()
        session.add(CacheShard(space="a", sha256="x", blob="x", bytes=3 << 20, rows=900, fence=1))
        session.add(
            CacheCoverage(
                space="a",
                dataset_version_id=1,
                render_key="r",
                conversations=400,
                cached=300,
                rows=1000,
                missing_rows=100,
            )
        )
    page = signed_in.get(HOME).text
    assert "<script>alert" not in page
    for words in (
        "kd is within 2 points of teacher",
        "kd is better than labels",
        "95.0",
        "[",
        "outside",
        "labels only",
        "1 open job",
        "&lt;script&gt;",
        "traffic v1",
        "frozen",
        "75\u00a0% of the data",
        "900 tokens, 3.0 MiB",
        "5.0× less compute than the teacher",
        "every 3s",
        "2 points behind the teacher",
        "Task specialisation",
    ):
        assert words in page, words
    part = signed_in.get(HOME, headers=PARTIAL).text
    assert part.lstrip().startswith("<div")
    assert signed_in.get("/projects/none").status_code == 404


def test_a_new_project_leads_to_its_home_and_registers_its_teacher(
    signed_in: TestClient, parts: Services
) -> None:
    page = signed_in.get("/projects/new").text
    assert 'name="kind" value="none" checked' in page
    assert 'name="student_kind" value="none" checked' in page
    assert "Later: cut it from the teacher" in page
    answer = signed_in.post("/projects", data=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, HOME)
    hub = {
        **FORM,
        "name": "Two",
        "kind": "hub",
        "repo_id": "owner/big",
        "token": "hf_canary",
        "path": "",
        "revision": "",
    }
    assert signed_in.post("/projects", data=hub).status_code == 303
    with parts.sessions() as session:
        project = queries.by_slug(session, "two")
        assert project is not None
        row = session.get(Checkpoint, project.teacher_id)
        assert row is not None
        assert (row.name, row.state) == ("big", "registering")
        job = session.get(Job, row.job_id)
        assert job is not None
        assert "hf_canary" not in str(job.spec)
    home = signed_in.get("/projects/two").text
    assert "Upload a log" in home
    assert "The teacher is being registered meanwhile." in home


def test_a_new_project_registers_its_student_too(signed_in: TestClient, parts: Services) -> None:
    """Equal last parts of two sources are told apart: names are unique in a project."""
    data = {
        **FORM,
        "kind": "folder",
        "path": "/models/large/v1",
        "student_kind": "hub",
        "student_repo_id": "owner/v1",
        "student_revision": "abc",
        "student_token": "hf_canary",
    }
    assert signed_in.post("/projects", data=data).status_code == 303
    with parts.sessions() as session:
        project = queries.by_slug(session, "routing")
        assert project is not None
        teacher = session.get(Checkpoint, project.teacher_id)
        student = session.get(Checkpoint, project.student_id)
        assert teacher is not None
        assert student is not None
        assert (teacher.name, student.name) == ("v1", "v1-student")
        assert student.origin == {"kind": "hub", "repo_id": "owner/v1", "revision": "abc"}
        job = session.get(Job, student.job_id)
        assert job is not None
        assert "hf_canary" not in str(job.spec)
    alone = {**data, "name": "Alone", "kind": "none"}
    assert signed_in.post("/projects", data=alone).status_code == 303
    with parts.sessions() as session:
        project = queries.by_slug(session, "alone")
        assert project is not None
        assert project.teacher_id is None
        assert project.student_id is not None


ONE_FOLDER = {"kind": "folder", "path": "/m/a", "student_kind": "folder", "student_path": "/m/a"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student_kind": "folder"}, '<div class="err" id="f-student_path-e">Is needed.'),
        ({"student_kind": "hub"}, '<div class="err" id="f-student_repo_id-e">Is needed.'),
        (ONE_FOLDER, '<div class="err" id="f-student_path-e">Must be another checkpoint'),
        ({"name": "  "}, "Is needed."),
        ({"tolerance": "-1"}, "Must be at least 0"),
        ({"deciding_metric": "vibes"}, "Must be one of"),
        ({"kind": "folder", "path": ""}, "Is needed."),
        ({"kind": "hub", "repo_id": " "}, "Is needed."),
    ],
)
def test_a_refused_project_is_not_made_and_keeps_what_was_typed(
    signed_in: TestClient, parts: Services, change: dict[str, str], words: str
) -> None:
    typed = {**FORM, "description": seeds.EVIL, "token": "hf_canary", **change}
    typed["student_token"] = "hf_canary"
    page = signed_in.post("/projects", data=typed)
    assert page.status_code == 422
    assert words in page.text
    assert "&lt;script&gt;" in page.text
    assert "hf_canary" not in page.text
    with parts.sessions() as session:
        assert queries.all_projects(session) == []


def test_teacher_and_student_are_chosen_among_the_projects_own(
    signed_in: TestClient, parts: Services
) -> None:
    make(parts, "student")
    with parts.sessions.begin() as session:
        mine = queries.by_slug(session, "routing")
        assert mine is not None
        seeds.checkpoint(session, mine, "bad", card=None, error="x")
        strange = seeds.checkpoint(session, seeds.project(session, "Other"), "strange")
    page = signed_in.get(f"{HOME}/edit").text
    assert '<option value="1" selected>big</option>' in page
    assert '<option value="2" selected>small</option>' in page
    assert ">bad</option>" not in page
    edit = {
        **FORM,
        "name": "Router",
        "teacher_id": "2",
        "student_id": "1",
        "deciding_metric": "kl",
        "tolerance": "0.5",
    }
    answer = signed_in.post(f"{HOME}/edit", data=edit)
    assert (answer.status_code, answer.headers["location"]) == (303, HOME)
    with parts.sessions() as session:
        found = queries.by_slug(session, "routing")
        assert found is not None
        assert (found.name, found.teacher_id, found.student_id) == ("Router", 2, 1)
    for change, words in (
        ({"student_id": "2"}, "Must be another checkpoint"),
        ({"student_id": str(strange.id)}, "This project has no checkpoint"),
        ({"name": " "}, "Is needed."),
        ({"teacher_id": "x"}, "Must be a whole number."),
    ):
        refused = signed_in.post(f"{HOME}/edit", data={**edit, **change})
        assert refused.status_code == 422
        assert words in refused.text
    with parts.sessions() as session:
        found = queries.by_slug(session, "routing")
        assert found is not None
        assert (found.name, found.student_id) == ("Router", 1)


def test_two_editors_do_not_overwrite_each_other(signed_in: TestClient, parts: Services) -> None:
    make(parts)
    page = signed_in.get(f"{HOME}/edit").text
    version = page.partition('name="version" value="')[2].partition('"')[0]
    assert (
        signed_in.post(
            f"{HOME}/edit", data={**FORM, "name": "Mine", "version": version}
        ).status_code
        == 303
    )
    late = signed_in.post(f"{HOME}/edit", data={**FORM, "name": "Late", "version": version})
    assert late.status_code == 422
    assert "Somebody changed the project" in late.text
    assert 'value="Late"' in late.text
    assert "Mine" in signed_in.get(HOME).text


def test_the_list_takes_the_same_queries_however_long(
    signed_in: TestClient, parts: Services, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    counts = []
    for turn in range(2):
        for number in range(1 + 4 * turn):
            for upto in ("draft", "running", "evaluated"):
                make(parts, upto, f"{upto} {turn} {number}")
        counts.append(count_queries(lambda: signed_in.get("/projects")))
    assert counts[0] == counts[1]
    assert counts[0] <= 16


def test_the_home_takes_the_same_queries_however_much_there_is(
    signed_in: TestClient, parts: Services, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    project = make(parts, "evaluated")
    counts = []
    for turn in range(2):
        with parts.sessions.begin() as session:
            found = session.get(Project, project.id)
            assert found is not None
            for number in range(2, 4 + 8 * turn):
                run = seeds.run(
                    session, found, 100 * (turn + 1) + number, name=f"r{turn}{number}", group="g"
                )
                seeds.evaluation(
                    session, found, 1, role="distilled", name=run.name, right=150, run_id=run.id
                )
                seeds.job(session, found, JobState.QUEUED)
                seeds.version(session, found, f"d{turn}{number}")
                seeds.checkpoint(session, found, f"c{turn}{number}")
        counts.append(count_queries(lambda: signed_in.get(HOME)))
    assert counts[0] == counts[1]
    assert counts[0] <= 40


@pytest.mark.parametrize("value", [1, "yesterday"])
def test_a_cursor_that_is_no_time_is_refused(signed_in: TestClient, value: object) -> None:
    answer = signed_in.get("/projects", params={"after": encode_key(value, 1)})
    assert answer.status_code == 422


def test_the_api_gives_what_the_list_and_the_home_show(
    api_client: TestClient, parts: Services
) -> None:
    make(parts, "evaluated")
    make(parts, name="Later")
    later, found = api_client.get("/api/v1/overview").json()
    assert (later["slug"], later["verdict"], later["teacher"]) == ("later", None, None)
    assert later["next"]["part"] == "teacher"
    assert later["next"]["href"].startswith("/projects/later/checkpoints")
    assert (found["owner"], found["runs"]) == ("robot", 1)
    assert (found["teacher"], found["student"]) == ("big", "small")
    assert found["compute"] == pytest.approx(5.0, abs=0.1)
    assert (found["verdict"]["run"], found["verdict"]["name"]) == (1, "kd")
    assert found["verdict"]["words"] == f"{found['verdict']['difference']['verdict']} 2 points"
    assert found["verdict"]["sentence"]
    assert datetime.fromisoformat(found["activity"]) >= datetime.fromisoformat(found["created_at"])
    one = api_client.get("/api/v1/projects/routing/overview").json()
    steps = one.pop("steps")
    assert one == found
    keys = ["teacher", "data", "student", "cache", "runs", "evaluation"]
    assert [step["key"] for step in steps] == keys
    assert [step["status"] for step in steps[:3]] == ["succeeded"] * 3
    search = api_client.get("/api/v1/overview", params={"search": "big"}).json()
    assert [row["slug"] for row in search] == ["routing"]
    assert api_client.get("/api/v1/projects/none/overview").status_code == 404


def test_the_api_takes_the_same_queries_however_many_projects(
    api_client: TestClient,
    parts: Services,
    count_queries: Callable[[Callable[[], object]], int],
) -> None:
    make(parts, "evaluated", name="First")
    few = count_queries(lambda: api_client.get("/api/v1/overview"))
    for number in range(3):
        make(parts, "evaluated", name=f"More {number}")
    assert count_queries(lambda: api_client.get("/api/v1/overview")) == few
