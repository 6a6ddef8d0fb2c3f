"""A server by the command line: registered, its key replaced, what it can do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.checkpoints import service
from app.jobs.models import Job
from app.projects.models import Project
from app.web.deps import Services
from tests.app.cli.conftest import Run
from tests.support import seeds

URL = "https://vllm.example/v1"


def test_a_server_is_registered_with_its_key_from_the_environment(
    run: Run, project: str, parts: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_SERVER_KEY", "sk-canary")
    words = ("checkpoints", "add", "t", URL, "--model", "org/big", "--project", project)
    more = ("--tokenizer", "org/big@v2", "--at-once", 3, "--json")
    result = run(*words, *more)
    made = json.loads(result.stdout)
    assert made["origin"] == {
        "kind": "endpoint",
        "base_url": URL,
        "model": "org/big",
        "tokenizer": {"kind": "hub", "repo_id": "org/big", "revision": "v2"},
        "at_once": 3,
    }
    assert "sk-canary" not in result.output
    file = service.key_file(parts.settings, made["id"])
    assert file.read_text() == "vllm.example:443\nsk-canary"

    monkeypatch.setenv("STILLHOUSE_SERVER_KEY", "sk-two")
    assert "is kept" in run("checkpoints", "key", "t", "--project", project).output
    assert file.read_text().endswith("sk-two")
    monkeypatch.delenv("STILLHOUSE_SERVER_KEY")
    assert "is forgotten" in run("checkpoints", "key", "t", "--project", project, "--forget").output
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "t", URL), "needs --model"),
        (("add", "t", "org/big", "--model", "x"), "belong to a server"),
        (("add", "t", URL, "--model", "m", "--tokenizer", "a b c"), "neither a folder"),
        (("key", "t"), "STILLHOUSE_SERVER_KEY"),
    ],
)
def test_what_is_missing_is_said(run: Run, project: str, words: tuple[str, ...], said: str) -> None:
    result = run("checkpoints", *words, "--project", project, exit_code=2)
    assert said in result.output.replace("\n", " ")


def test_a_private_address_is_refused_with_the_setting(
    run: Run, project: str, run_json: Callable[..., Any]
) -> None:
    add = ("checkpoints", "add", "t", "http://127.0.0.1:8000/v1", "--model", "m")
    result = run(*add, "--project", project, exit_code=2)
    assert "STILLHOUSE_ENDPOINT_HOSTS" in result.output.replace("\n", "")
    assert run_json("checkpoints", "list", "--project", project) == []


def test_a_checkpoint_answers_a_file(
    run: Run,
    run_json: Callable[..., Any],
    project: str,
    parts: Services,
    tmp_path: Path,
) -> None:
    with parts.sessions.begin() as session:
        seeds.checkpoint(session, session.query(Project).one(), "big")
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    words = ("checkpoints", "answer", "big", prompts, "--project", project)
    made = run_json(*words, "--max-new-tokens", 9, "--temperature", 0.5, "--seed", 4)
    assert made["filename"] == "asked-answers.jsonl"
    with parts.sessions() as session:
        spec = session.get_one(Job, made["job_id"]).spec
    assert (spec["max_new_tokens"], spec["temperature"], spec["seed"]) == (9, 0.5, 4)
    missing = run("checkpoints", "answer", "big", "gone.jsonl", "--project", project, exit_code=2)
    assert "is not a file" in missing.output
