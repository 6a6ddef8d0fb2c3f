"""Each command on the real API: what it prints, its JSON, its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.jobs.service import request_cancel
from app.web.deps import Services
from tests.app.cli.conftest import Run
from tests.support.workers import working_here
from tests.workers.distill.tiny import llama, tokenizer
from workers.distill.checkpoints import save_checkpoint

RunJson = Callable[..., Any]


def write_log(path: Path, calls: int) -> None:
    lines = []
    for n in range(calls):
        messages = [{"role": "user", "content": f"ticket {n}"}]
        choice = {"index": 0, "message": {"role": "assistant", "content": "{}"}}
        response = {"model": "m", "choices": [choice | {"finish_reason": "stop"}]}
        record = {"request": {"messages": messages}, "response": response}
        lines.append(json.dumps(record))
    path.write_text("\n".join([*lines, lines[0], "{cut off"]) + "\n")


def test_projects_are_made_and_listed(run: Run, run_json: RunJson) -> None:
    assert "No project yet" in run("projects", "list").stdout
    made = run("projects", "create", "Ticket routing", "--metric", "field_f1", "--tolerance", 3)
    assert made.stdout.strip() == "ticket-routing"
    listed = run_json("projects", "list")
    assert [(p["slug"], p["deciding_metric"], p["tolerance"]) for p in listed] == [
        ("ticket-routing", "field_f1", 3.0)
    ]
    shown = run("projects", "list").stdout
    assert "3 points" in shown
    assert "Field F1" in shown


def test_a_projects_teacher_student_and_what_decides_are_set(run: Run, run_json: RunJson) -> None:
    run("projects", "create", "Tickets")
    for name in ("big", "small"):
        run("checkpoints", "add", name, f"org/{name}", "--project", "tickets")
    made = run_json("projects", "set", "Tickets", "--teacher", "big", "--student", 2)
    assert (made["teacher_id"], made["student_id"], made["tolerance"]) == (1, 2, 2.0)
    words = run("projects", "set", "tickets", "--metric", "field_f1", "--tolerance", 3).stdout
    assert "Teacher    big" in words
    assert "Student    small" in words
    assert "3 points" in words
    found = run_json("projects", "show", "tickets")
    assert (found["teacher_id"], found["deciding_metric"]) == (1, "field_f1")
    assert run_json("projects", "list") == [found]
    unit = run("projects", "set", "tickets", "--metric", "kl", exit_code=2)
    assert "--tolerance" in unit.stderr
    assert "--teacher" in run("projects", "set", "tickets", exit_code=2).stderr
    gone = run("projects", "set", "tickets", "--teacher", "huge", exit_code=2)
    assert "no checkpoint “huge”" in gone.stderr
    assert run_json("projects", "show", "tickets") == found


def test_wrong_use_is_a_sentence_and_exit_code_2(run: Run, project: str, tmp_path: Path) -> None:
    nothing = run("checkpoints", "list", "--project", "nothing", exit_code=2)
    assert "no project “nothing”" in nothing.stderr
    assert not nothing.stdout
    goal = run("projects", "create", "x", "--goal", "fun", exit_code=2)
    assert "task_specialisation" in goal.stderr
    metric = run("projects", "create", "x", "--metric", "speed", exit_code=2)
    assert "deciding_metric" in metric.stderr
    assert run("projects", exit_code=2).stdout.count("create")
    add = ("checkpoints", "add", "t", "--project", project)
    assert "nor a hub id" in run(*add, tmp_path / "no-such", exit_code=2).stderr
    gone = run("import", "gone.jsonl", "--project", project, "--dataset", "d", exit_code=2)
    assert "gone.jsonl is not a file" in gone.stderr
    freeze = run("datasets", "freeze", "d", "--project", project, exit_code=2)
    assert "no dataset “d”. It has none" in freeze.stderr


def test_projects_are_found_by_name_too(run: Run, run_json: RunJson) -> None:
    run("projects", "create", "Ticket routing")
    assert run_json("datasets", "list", "--project", "Ticket routing") == []
    run("projects", "create", "Ticket routing")
    twice = run("datasets", "list", "--project", "Ticket routing", exit_code=2)
    assert "ticket-routing-2" in twice.stderr
    assert (
        "no project “No such”"
        in run("datasets", "list", "--project", "No such", exit_code=2).stderr
    )


def test_hub_ids_become_downloads(run_json: RunJson, project: str) -> None:
    made = run_json("checkpoints", "add", "base", "org/name@v1", "--project", project)
    assert made["origin"] == {"kind": "hub", "repo_id": "org/name", "revision": "v1"}
    assert made["state"] == "registering"


def test_an_import_says_when_no_record_has_the_reference(
    run: Run, project: str, parts: Services, tmp_path: Path
) -> None:
    log = tmp_path / "traffic.jsonl"
    write_log(log, 4)
    told = {}
    with working_here(parts.sessions, parts.settings):
        for path in ("response.model", "response.modle"):
            named = ("--project", project, "--dataset", "traffic", "--reference", path)
            told[path] = run("import", log, *named).stderr
    assert "nothing was found at “response.modle”" in told["response.modle"]
    assert "nothing was found" not in told["response.model"]


def test_a_format_that_does_not_exist_is_a_wrong_argument_and_makes_nothing(
    run: Run, run_json: RunJson, project: str, parts: Services, tmp_path: Path
) -> None:
    log = tmp_path / "traffic.jsonl"
    write_log(log, 4)
    named = ("--project", project, "--dataset", "traffic", "--format", "wat")
    with working_here(parts.sessions, parts.settings):
        told = run("import", log, *named, exit_code=2).stderr
    assert "There is no format wat. Take auto, or one of " in told
    assert "openai_chat" in told
    assert run_json("datasets", "list", "--project", project) == []


def test_an_import_prints_a_funnel_that_adds_up(
    run: Run, run_json: RunJson, project: str, parts: Services, tmp_path: Path
) -> None:
    log = tmp_path / "traffic.jsonl"
    write_log(log, 4)
    with working_here(parts.sessions, parts.settings):
        funnel = run_json("import", log, "--project", project, "--dataset", "traffic")
        told = run("import", log, "--project", project, "--dataset", "traffic")
        frozen = run_json("datasets", "freeze", "traffic@1", "--project", project, "--wait")
    assert funnel == {
        "format": "openai_chat",
        "records": 6,
        "calls": 4,
        "duplicates": 1,
        "joined": 0,
        "skipped": {},
        "quarantined": {"json_truncated": 1},
        "folded": 0,
        "conversations": 4,
        "targets": 4,
    }
    shown = told.stdout
    assert "No validation conversations" in told.stderr
    assert "1 quarantined, json truncated" in shown
    assert "traffic@2 is a draft" in shown
    assert (frozen["state"], frozen["number"], frozen["dataset_name"]) == ("frozen", 1, "traffic")
    again = ("datasets", "freeze", "traffic@1", "--project", project)
    assert run(*again).stdout == "traffic@1 is frozen already.\n"
    assert run_json(*again, "--wait") == frozen
    listed = run_json("datasets", "list", "--project", project)
    assert [(v["number"], v["state"]) for v in listed] == [(2, "draft"), (1, "frozen")]
    newest = ("datasets", "freeze", "traffic", "--project", project)
    with working_here(parts.sessions, parts.settings):
        assert run(*newest, "--wait").stdout == "traffic@2 is frozen.\n"
    assert run(*newest, "--wait").stdout == "traffic@2 is frozen already.\n"
    assert "traffic@1" in run("datasets", "list", "--project", project).stdout


def test_checkpoints_are_registered_pruned_or_fail_with_their_reason(
    run: Run, run_json: RunJson, project: str, parts: Services, tmp_path: Path
) -> None:
    save_checkpoint(llama(), tokenizer(), tmp_path / "teacher")
    (tmp_path / "empty").mkdir()
    at = ("--project", project)
    with working_here(parts.sessions, parts.settings):
        add = ("checkpoints", "add", "--wait", *at)
        made = run_json(*add, "teacher", tmp_path / "teacher")
        failed = run(*add, "broken", tmp_path / "empty", exit_code=1)
        prune = ("checkpoints", "prune", "small", "--teacher", "teacher", "--wait", *at)
        assert "is ready" in run(*prune, "--depth", 1).stdout
    assert made["state"] == "ready"
    assert "“Register broken” failed" in failed.stderr
    assert "config.json" in failed.stderr.replace("\n", " ")
    assert [c["card"]["depth"] for c in run_json("checkpoints", "list", *at) if c["card"]] == [2, 1]
    nobody = ("checkpoints", "prune", "s", "--teacher", "nobody", "--depth", 1, *at)
    assert "It has teacher, broken, small" in run(*nobody, exit_code=2).stderr
    twice = run("checkpoints", "add", "teacher", tmp_path / "teacher", *at, exit_code=2)
    assert "already has a checkpoint" in twice.stderr


def test_a_checkpoint_that_nothing_uses_is_removed(
    run: Run, run_json: RunJson, project: str, parts: Services
) -> None:
    at = ("--project", project)
    made = run_json("checkpoints", "add", "big", "org/big", *at)
    used = run("checkpoints", "remove", "big", *at, exit_code=1)
    assert "“big” cannot be removed. It is used by the job “Register big”" in " ".join(
        used.stderr.split()
    )
    with parts.sessions.begin() as session:
        request_cancel(session, made["job_id"], "discard")
    assert "“big” is removed." in run("checkpoints", "remove", "big", *at).stdout
    assert run_json("checkpoints", "list", *at) == []
    assert "no checkpoint “big”" in run("checkpoints", "remove", "big", *at, exit_code=2).stderr
