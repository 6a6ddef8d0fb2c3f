"""Fill the teacher cache for a dataset version; each shard is kept as soon as it is complete."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.conversation import Conversation
from app.specs.jobs import JobKind, PrecomputeJob
from app.specs.teacher import CacheReport, CacheSpace
from app.teacher_cache import queries, service
from workers.distill.callbacks import Callbacks
from workers.distill.capture import capture, check_faithfulness, nothing_missing
from workers.distill.checkpoints import compute_device, load_model
from workers.distill.errors import UnfaithfulCacheError
from workers.distill.rendering import Renderer
from workers.distill.served.scoring import ServedTeacher
from workers.distill.teachers import LocalTeacher, Teacher
from workers.distill.tokenizers import load_tokenizer
from workers.distill.values import RenderedConversation
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.caching import DAMAGED, Shards, give_up, sound
from workers.tasks.left_out import tell
from workers.tasks.served import ServerInputs, require_rows, server_of
from workers.tasks.sets import read_conversations, tokenizer_folder, version_path
from workers.tasks.validating import require_context

UNFAITHFUL = "unfaithful_cache"
DROPPED = "What the cache held of this teacher is dropped: try again, and it is captured anew."


class PrecomputeInputs(Inputs):
    job: PrecomputeJob
    teacher: str
    conversations: str
    space: CacheSpace
    shards: Shards
    server: ServerInputs | None = None
    """Whom to ask, where the teacher is behind a server."""
    top: int = 0
    """Most log-probabilities a token that the server gives."""
    checked: bool = False
    """Whether what the cache holds was compared with the teacher already."""


@contextmanager
def _teacher(
    inputs: PrecomputeInputs, calls: Callbacks, rendered: Sequence[RenderedConversation]
) -> Iterator[Teacher]:
    """Give the teacher: its weights in this process, or the server that has them."""
    entries = inputs.space.vocabulary
    if inputs.server is None:
        model = load_model(Path(inputs.teacher)).to(compute_device())
        require_context(model, rendered, "teacher")
        yield LocalTeacher(model, entries)
        return
    with inputs.server.endpoint(calls.should_stop) as endpoint:
        calls.log(
            f"Rows are asked of {inputs.server.base_url}: the top {inputs.job.profile.k_max} at "
            "T = 1, the rest one bucket."
        )
        yield ServedTeacher(endpoint, entries, inputs.top)


class PrecomputeTask:
    kind = JobKind.PRECOMPUTE
    inputs: type[Inputs] = PrecomputeInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = PrecomputeJob.model_validate(spec)
        folder, card = tokenizer_folder(session, job.teacher_id, settings)
        server, _, _ = server_of(session, job.teacher_id, settings)
        require_rows("The teacher's server", card)
        space = service.space_of(card, job.profile)
        service.open_space(session, space, teacher_id=job.teacher_id)
        known = queries.report(session, space.address)
        return PrecomputeInputs(
            job=job,
            teacher=folder,
            conversations=version_path(session, job.dataset_version_id, settings),
            space=space,
            shards={
                str(path): entries
                for path, entries in service.shards(session, space.address, settings).items()
            },
            server=server,
            top=(card.server.top or 0) if card.server else 0,
            checked=known is not None and known.faithfulness is not None,
        )

    def run(self, inputs: PrecomputeInputs, context: BodyContext) -> dict[str, Any]:
        calls, job = context.callbacks, inputs.job
        calls.phase("check the shards")
        shards = {Path(name): entries for name, entries in inputs.shards.items()}
        if job.part is None:
            shards = sound(inputs.shards, inputs.space.address, calls)
        calls.phase("load")
        tokenizer = load_tokenizer(Path(inputs.teacher))
        conversations = read_conversations(inputs.conversations, ("train", "validation"))
        rendered = Renderer(tokenizer, job.render).render_all(conversations)
        tell(rendered, calls)
        wanted = read_by_a_run(rendered.rendered, conversations, job.max_train_conversations)
        held = {entry for entries in shards.values() for entry in entries}
        if inputs.checked and all(r.entry in held for r in wanted):
            calls.log("The cache holds every row already; the teacher is not needed.")
            report = nothing_missing(wanted)
            return {"address": inputs.space.address, "report": report.model_dump(mode="json")}
        with _teacher(inputs, calls, wanted) as teacher:
            return self._capture(inputs, context, wanted, teacher, shards)

    @staticmethod
    def _capture(
        inputs: PrecomputeInputs,
        context: BodyContext,
        rendered: Sequence[RenderedConversation],
        teacher: Teacher,
        shards: Mapping[Path, tuple[str, ...]],
    ) -> dict[str, Any]:
        calls, job = context.callbacks, inputs.job
        calls.phase("capture")
        report, made = capture(
            rendered,
            teacher,
            inputs.space,
            folder=context.workdir,
            callbacks=calls,
            cached=[entry for entries in shards.values() for entry in entries],
            shard_rows=job.shard_rows,
            share=(job.part or 0, job.parts),
        )
        files = [*shards, *(shard.path for shard in made)]
        if job.part is None and job.check_faithfulness and not calls.should_stop():
            calls.phase("check against the live teacher")
            found = check_faithfulness(rendered, teacher, job.profile, files)
            calls.log(found.sentence, "info" if found.passed else "error")
            if not found.passed:
                calls.publish({"kind": UNFAITHFUL, "space": inputs.space.address})
                raise UnfaithfulCacheError(f"{found.sentence} {DROPPED}")
            report = report.model_copy(update={"faithfulness": found})
        return {"address": inputs.space.address, "report": report.model_dump(mode="json")}

    def publish(
        self, session: Session, held: Claim, payload: dict[str, Any], settings: Settings
    ) -> None:
        if payload["kind"] == UNFAITHFUL:
            service.forget(session, payload["space"])
        elif payload["kind"] == DAMAGED:
            give_up(session, payload)
        else:
            service.add_shard(session, payload, fence=held.fence, settings=settings)

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        del settings
        job = PrecomputeJob.model_validate(held.spec)
        found = CacheReport.model_validate(result["report"])
        service.captured(session, result["address"], job, found)


def read_by_a_run(
    rendered: Sequence[RenderedConversation],
    conversations: Sequence[Conversation],
    most: int | None,
) -> Sequence[RenderedConversation]:
    """Return the first `most` of the training part, and all that is validated on."""
    training = {c.id for c in conversations if c.split == "train"}
    taken = itertools.count(1)
    return [
        r
        for r in rendered
        if most is None or r.conversation_id not in training or next(taken) <= most
    ]


TASKS: dict[JobKind, Task] = {JobKind.PRECOMPUTE: PrecomputeTask()}
