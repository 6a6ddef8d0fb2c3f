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
from app.errors import Conflict, NotFound
from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.conversation import Message
from app.specs.jobs import GenerateJob, JobKind
from app.specs.training import RenderSpec
from workers.distill.checkpoints import compute_device, load_model
from workers.distill.generate import Generation, GenerationStopped, generate
from workers.distill.rendering import Renderer
from workers.distill.served.answers import AnswersStopped, Asking, LimitField, ask_for_answers
from workers.distill.tokenizers import load_tokenizer
from workers.job.task import BodyContext, Inputs, Task, UserError
from workers.tasks.served import ServerInputs, server_of
from workers.tasks.sets import NoParts


class GenerateInputs(Inputs):
    job: GenerateJob
    checkpoint: str
    server: ServerInputs | None = None
    """Whom to ask, where it is behind a server."""
    limit_field: LimitField = "max_tokens"
    model: str
    """The name that the answers carry as their model."""
    prompts: str


class GenerateTask(NoParts):
    kind = JobKind.GENERATE
    inputs: type[Inputs] = GenerateInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = GenerateJob.model_validate(spec)
        name = checkpoints.require_ready(session, job.checkpoint_id).name
        server, folder, card = server_of(session, job.checkpoint_id, settings)
        if card.server is not None and not card.server.chat:
            raise Conflict(f"“{name}” answers no chat requests: its server gives rows only.")
        upload = session.get(Upload, job.prompts_upload_id)
        if upload is None:
            raise NotFound("The upload of prompts was removed. Send the file again.")
        path = datasets.upload_path(settings, upload.key).absolute()
        return GenerateInputs(
            job=job,
            checkpoint=folder,
            server=server,
            limit_field=card.server.limit_field if card.server else "max_tokens",
            model=name,
            prompts=str(path),
        )

    def run(self, inputs: GenerateInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("load")
        requests = [_request(n, line) for n, line in enumerate(_lines(inputs.prompts), start=1)]
        if inputs.server is not None:
            return self._ask(inputs, inputs.server, requests, context)
        folder, job = Path(inputs.checkpoint), inputs.job
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
        lines = {i: _response(answer, inputs.model) for i, answer in answers.items()}
        return {**_written(requests, lines, context), "answers": len(answers)}

    @staticmethod
    def _ask(
        inputs: GenerateInputs,
        server: ServerInputs,
        requests: list[dict[str, Any]],
        context: BodyContext,
    ) -> dict[str, Any]:
        """Ask a server; a request without an answer keeps its error in the answer's place."""
        job, calls = inputs.job, context.callbacks
        asking = Asking(job.max_new_tokens, job.temperature, job.seed, inputs.limit_field)
        calls.phase("ask the server")
        with server.endpoint(calls.should_stop) as endpoint:
            try:
                found = ask_for_answers(endpoint, requests, asking, calls)
            except AnswersStopped as stopped:
                found = stopped.answered
                if not found.answers:
                    raise
        first, *rest = found.sentences(len(requests))
        calls.log(first, "info" if found.answers == len(requests) else "warning")
        for sentence in rest:
            calls.log(sentence, "warning")
        counts = {"answers": found.answers, "refused": found.refused, "failed": dict(found.failed)}
        return {**_written(requests, found.responses, context), **counts}

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        upload_id = GenerateJob.model_validate(held.spec).output_upload_id
        generations.fill(session, upload_id, Path(result["file"]), settings)


def _response(answer: Generation, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    return {"model": model, "choices": [choice]}


def _written(
    requests: list[dict[str, Any]], responses: Mapping[int, dict[str, Any]], context: BodyContext
) -> dict[str, Any]:
    """Write the log of the answers, in the requests' order, and return where."""
    out = context.workdir / "answers.jsonl"
    with out.open("wb") as file:
        for index in sorted(responses):
            line = {"request": requests[index], "response": responses[index]}
            file.write(orjson.dumps(line) + b"\n")
    return {"file": str(out.absolute())}


def _lines(path: str) -> list[bytes]:
    return [line for line in Path(path).read_bytes().splitlines() if line.strip()]


def _request(number: int, line: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"Line {number} of the prompts is not JSON: {error}.") from error
    if isinstance(request, dict) and isinstance(request.get("request"), dict):
        request = request["request"]  # a log: what was asked is asked anew
    if not isinstance(request, dict) or not request.get("messages"):
        raise UserError(f"Line {number} of the prompts has no messages.")
    return request


def _messages(request: dict[str, Any]) -> list[Message]:
    return [Message(role=m["role"], content=m.get("content") or "") for m in request["messages"]]


TASKS: dict[JobKind, Task] = {JobKind.GENERATE: GenerateTask()}
