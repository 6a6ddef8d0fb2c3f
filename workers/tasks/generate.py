"""A checkpoint answers prompts; the answers become an upload in OpenAI chat format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.datasets import generations
from app.datasets import service as datasets
from app.datasets.models import Upload
from app.errors import NotFound
from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.conversation import Message
from app.specs.jobs import GenerateJob, JobKind
from app.specs.training import RenderSpec
from workers.distill.checkpoints import compute_device, load_model
from workers.distill.generate import Generation, GenerationStopped, generate
from workers.distill.rendering import Renderer
from workers.distill.tokenizers import load_tokenizer
from workers.job.task import BodyContext, Inputs, Task, UserError
from workers.tasks.sets import NoParts, checkpoint_folder


class GenerateInputs(Inputs):
    job: GenerateJob
    checkpoint: str
    model: str
    """The name that the answers carry as their model."""
    prompts: str


class GenerateTask(NoParts):
    kind = JobKind.GENERATE
    inputs: type[Inputs] = GenerateInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = GenerateJob.model_validate(spec)
        name = checkpoints.require_ready(session, job.checkpoint_id).name
        folder, _ = checkpoint_folder(session, job.checkpoint_id, settings)
        upload = session.get(Upload, job.prompts_upload_id)
        if upload is None:
            raise NotFound("The upload of prompts was removed. Send the file again.")
        path = datasets.upload_path(settings, upload.key).absolute()
        return GenerateInputs(job=job, checkpoint=folder, model=name, prompts=str(path))

    def run(self, inputs: GenerateInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("load")
        folder, job = Path(inputs.checkpoint), inputs.job
        requests = [_request(n, line) for n, line in enumerate(_lines(inputs.prompts), start=1)]
        tokenizer = load_tokenizer(folder)
        renderer = Renderer(tokenizer, RenderSpec())
        prompts = [renderer.render_prompt(_messages(r), r.get("tools", ())) for r in requests]
        context.callbacks.phase("generate")
        try:
            made = generate(
                load_model(folder).to(compute_device()),
                tokenizer,
                prompts,
                max_new_tokens=job.max_new_tokens,
                batch_size=job.batch_size,
                callbacks=context.callbacks,
                temperature=job.temperature,
                seed=job.seed,
            )
            answers = dict(enumerate(made))
        except GenerationStopped as stopped:
            answers = stopped.answers
            if not answers:
                raise
            found = f"Stopped: {len(answers)} of {len(prompts)} prompts are answered."
            context.callbacks.log(found, "warning")
        out = context.workdir / "answers.jsonl"
        with out.open("wb") as file:
            for index in sorted(answers):
                file.write(_line(requests[index], answers[index], inputs.model))
        return {"file": str(out.absolute()), "answers": len(answers)}

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        upload_id = GenerateJob.model_validate(held.spec).output_upload_id
        generations.fill(session, upload_id, Path(result["file"]), settings)


def _line(request: dict[str, Any], answer: Generation, model: str) -> bytes:
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    response = {"model": model, "choices": [choice]}
    return orjson.dumps({"request": request, "response": response}) + b"\n"


def _lines(path: str) -> list[bytes]:
    return [line for line in Path(path).read_bytes().splitlines() if line.strip()]


def _request(number: int, line: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"Line {number} of the prompts is not JSON: {error}.") from error
    if not isinstance(request, dict) or not request.get("messages"):
        raise UserError(f"Line {number} of the prompts has no messages.")
    return request


def _messages(request: dict[str, Any]) -> list[Message]:
    return [Message(role=m["role"], content=m.get("content") or "") for m in request["messages"]]


TASKS: dict[JobKind, Task] = {JobKind.GENERATE: GenerateTask()}
