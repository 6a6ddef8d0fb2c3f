"""GENERATE that is stopped: whole batches are kept, nothing is no result."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.specs.jobs import GenerateJob
from tests.workers.distill import tiny
from workers.distill.callbacks import Stopped
from workers.distill.checkpoints import save_checkpoint
from workers.job.task import BodyContext
from workers.sinks import PipeCallbacks
from workers.tasks.generate import GenerateInputs, GenerateTask

PROMPTS = [{"messages": [{"role": "user", "content": f"ticket {n}"}]} for n in range(5)]


class StopAfterFirstBatch(PipeCallbacks):
    """Asks to stop as soon as `batches` batches were reported."""

    def __init__(self, pipe: io.BytesIO, batches: int) -> None:
        super().__init__(pipe)
        self.batches = batches

    def progress(self, done: int, total: int, unit: str) -> None:
        self.batches -= 1

    def should_stop(self) -> bool:
        return self.batches <= 0


def run(tmp_path: Path, batches: int) -> dict[str, Any]:
    save_checkpoint(tiny.llama(tied=False), tiny.tokenizer(), tmp_path / "teacher")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS))
    job = GenerateJob(
        checkpoint_id=1, prompts_upload_id=2, output_upload_id=3, max_new_tokens=3, batch_size=2
    )
    inputs = GenerateInputs(
        job=job, checkpoint=str(tmp_path / "teacher"), model="teacher", prompts=str(prompts)
    )
    calls = StopAfterFirstBatch(io.BytesIO(), batches)
    return GenerateTask().run(inputs, BodyContext(tmp_path, tmp_path, (), calls))


def test_whole_batches_are_kept(tmp_path: Path) -> None:
    result = run(tmp_path, batches=2)
    assert result["answers"] == 4
    lines = [orjson.loads(line) for line in Path(result["file"]).read_bytes().splitlines()]
    kept = [line["request"] for line in lines]
    assert kept == [prompt for prompt in PROMPTS if prompt in kept], "in the prompts' order"


def test_nothing_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, batches=0)


def test_the_requests_of_a_log_are_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = [{"request": prompt, "response": {"choices": []}} for prompt in PROMPTS]
    monkeypatch.setattr(sys.modules[__name__], "PROMPTS", logged)
    result = run(tmp_path, batches=99)
    lines = [orjson.loads(line) for line in Path(result["file"]).read_bytes().splitlines()]
    assert [line["request"] for line in lines] == [line["request"] for line in logged]
    assert all(line["response"]["choices"] for line in lines)
