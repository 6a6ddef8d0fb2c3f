"""Register a checkpoint (folder or hub), and cut a student out of a teacher."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.checkpoints import service
from app.datasets import queries as datasets
from app.datasets.models import DatasetVersion
from app.datasets.service import conversations_path
from app.errors import NotFound
from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.checkpoint import (
    CheckpointCard,
    EndpointSource,
    FolderSource,
    HubSource,
    PruneSpec,
    TokenizerSource,
)
from app.specs.fingerprint import fingerprint
from app.specs.jobs import JobKind, PruneJob, RegisterJob
from app.specs.training import RenderSpec
from workers.distill.checkpoints import (
    download_hub,
    import_folder,
    load_model,
    read_card,
    save_checkpoint,
)
from workers.distill.rendering import Renderer
from workers.distill.served.cards import served_card, tokenizer_folder, write_facts
from workers.distill.served.probe import probe
from workers.distill.students.prune import prune
from workers.distill.tokenizers import load_tokenizer, vocabulary_size
from workers.job.task import BodyContext, Inputs, Task, UserError
from workers.tasks.served import ServerInputs, server_inputs
from workers.tasks.sets import NoParts, checkpoint_folder

PROBE_BACKOFF = (0.5, 1.0)
"""Somebody waits for the answer: what does not pass soon is told."""


class RegisterInputs(Inputs):
    job: RegisterJob
    token_file: str
    """Holds the hub token, if there is one: the token itself is in no spec and on no pipe."""
    server: ServerInputs | None = None


class PruneInputs(Inputs):
    teacher: str
    calibration: str | None
    prune: PruneSpec
    licence: str | None
    """The teacher's: what is cut out of it stays under it."""


class _FillsCheckpoint(NoParts):
    """What both jobs share: the result is a folder that becomes a blob, and a card."""

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        card = CheckpointCard.model_validate(result["card"])
        # Not by weights alone: equal weights may come with another tokenizer or template.
        name = f"{card.weights_fingerprint[:32]}-{(card.tokenizer_fingerprint or 'none')[:16]}"
        name += f"-{(card.template_fingerprint or 'none')[:16]}"
        if card.server is not None:
            # What a server is found to give may be another thing each time it is registered.
            name += f"-{fingerprint(card.server)[:16]}"
        blob = f"checkpoints/{name}"
        service.store(session, Path(result["folder"]), blob, settings)
        checkpoint_id = held.spec["checkpoint_id"]
        service.ready(session, checkpoint_id, card, blob, commit=result.get("commit"))
        service.drop_token(settings, checkpoint_id)


class RegisterTask(_FillsCheckpoint):
    kind = JobKind.REGISTER
    inputs: type[Inputs] = RegisterInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = RegisterJob.model_validate(spec)
        service.require(session, job.checkpoint_id)
        token = service.token_file(settings, job.checkpoint_id).absolute()
        server = None
        if isinstance(job.source, EndpointSource):
            server = server_inputs(job.source, job.checkpoint_id, settings)
        return RegisterInputs(job=job, token_file=str(token), server=server)

    def run(self, inputs: RegisterInputs, context: BodyContext) -> dict[str, Any]:
        source = inputs.job.source
        target = context.workdir / "checkpoint"
        if isinstance(source, EndpointSource) and inputs.server is not None:
            return self._served(inputs, source, inputs.server, context)
        if isinstance(source, EndpointSource):
            raise UserError("The server to ask is missing. Register the checkpoint again.")
        folder, commit = self._found(inputs, source, context, weights=True)
        context.callbacks.phase("copy")
        card = import_folder(folder, target, context.callbacks)
        if commit is not None:
            shutil.rmtree(folder)
        made = {"folder": str(target.absolute()), "card": card.model_dump(mode="json")}
        return made if commit is None else made | {"commit": commit}

    def _served(
        self,
        inputs: RegisterInputs,
        source: EndpointSource,
        server: ServerInputs,
        context: BodyContext,
    ) -> dict[str, Any]:
        """Ask a server what it gives; its tokenizer becomes the checkpoint's folder."""
        target, calls = context.workdir / "checkpoint", context.callbacks
        tokenizer, commit = None, None
        if source.tokenizer is not None:
            folder, commit = self._found(inputs, source.tokenizer, context, weights=False)
            tokenizer = tokenizer_folder(folder, target)
            if commit is not None:
                shutil.rmtree(folder)
        calls.phase("ask the server")
        entries = vocabulary_size(tokenizer) if tokenizer is not None else 0
        with server.endpoint(calls.should_stop, PROBE_BACKOFF) as endpoint:
            facts, context_length = probe(endpoint, source, tokenizer, entries, calls.log)
        calls.log(facts.sentence)
        write_facts(facts, target)
        card = served_card(source, facts, tokenizer, target)
        if context_length is not None:
            card = card.model_copy(update={"context_length": context_length})
        made = {"folder": str(target.absolute()), "card": card.model_dump(mode="json")}
        return made if commit is None else made | {"commit": commit}

    def _found(
        self,
        inputs: RegisterInputs,
        source: TokenizerSource,
        context: BodyContext,
        *,
        weights: bool,
    ) -> tuple[Path, str | None]:
        """Return the folder of a source, and the commit of one that was downloaded."""
        if isinstance(source, FolderSource):
            return Path(source.path).expanduser(), None
        # Beside the attempt's folder: the next attempt goes on with what was fetched.
        folder = context.workdir.parent / f"hub-{inputs.job.checkpoint_id}"
        secret = Path(inputs.token_file)
        return folder, self._download(source, secret, folder, context, weights=weights)

    @staticmethod
    def _download(
        source: HubSource, secret: Path, target: Path, context: BodyContext, *, weights: bool
    ) -> str:
        """Fetch the repository; return its commit.

        The token outlives a killed child, not the end of the job.
        """
        token = secret.read_text() if secret.is_file() else None
        repo, revision = source.repo_id, source.revision
        try:
            return download_hub(repo, revision, token, target, context.callbacks, weights=weights)
        except Exception:
            secret.unlink(missing_ok=True)
            raise


class PruneTask(_FillsCheckpoint):
    kind = JobKind.PRUNE
    inputs: type[Inputs] = PruneInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = PruneJob.model_validate(spec)
        service.require(session, job.checkpoint_id)
        folder, teacher = checkpoint_folder(session, job.teacher_id, settings)
        calibration = None
        if job.dataset_version_id is not None:
            version = session.get(DatasetVersion, job.dataset_version_id)
            if version is None:
                raise NotFound("The dataset version for calibration was removed.")
            calibration = str(conversations_path(version, settings).absolute())
        return PruneInputs(
            teacher=folder, calibration=calibration, prune=job.prune, licence=teacher.licence
        )

    def run(self, inputs: PruneInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("load teacher")
        folder = Path(inputs.teacher)
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        ids = []
        if inputs.calibration is not None:
            context.callbacks.phase("rank channels")
            found = datasets.first_conversations(
                Path(inputs.calibration), inputs.prune.calibration_conversations, split="train"
            )
            rendered = Renderer(tokenizer, RenderSpec()).render_all(found).rendered
            ids = [item.input_ids for item in rendered]
        context.callbacks.phase("cut")
        target = context.workdir / "student"
        save_checkpoint(prune(model, inputs.prune, ids), tokenizer, target)
        card = read_card(target, licence=inputs.licence)
        return {"folder": str(target.absolute()), "card": card.model_dump(mode="json")}


TASKS: dict[JobKind, Task] = {JobKind.REGISTER: RegisterTask(), JobKind.PRUNE: PruneTask()}
