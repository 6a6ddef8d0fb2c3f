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
from app.specs.checkpoint import CheckpointCard, FolderSource, HubSource, PruneSpec
from app.specs.jobs import JobKind, PruneJob, RegisterJob
from app.specs.training import RenderSpec
from app.storage.blobs import LocalBlobs
from workers.distill.checkpoints import (
    download_hub,
    import_folder,
    load_model,
    read_card,
    save_checkpoint,
)
from workers.distill.rendering import Renderer
from workers.distill.students.prune import prune
from workers.distill.tokenizers import load_tokenizer
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.sets import NoParts


class RegisterInputs(Inputs):
    job: RegisterJob
    token_file: str
    """Holds the hub token, if there is one: the token itself is in no spec and on no pipe."""


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
        name = f"{card.weights_fingerprint[:32]}-{card.tokenizer_fingerprint[:16]}"
        name += f"-{(card.template_fingerprint or 'none')[:16]}"
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
        return RegisterInputs(job=job, token_file=str(token))

    def run(self, inputs: RegisterInputs, context: BodyContext) -> dict[str, Any]:
        source = inputs.job.source
        fetched: Path | None = None
        commit: str | None = None
        if isinstance(source, FolderSource):
            folder = Path(source.path).expanduser()
        else:
            # Beside the attempt's folder: the next attempt goes on with what was fetched.
            folder = fetched = context.workdir.parent / f"hub-{inputs.job.checkpoint_id}"
            commit = self._download(source, Path(inputs.token_file), folder, context)
        context.callbacks.phase("copy")
        target = context.workdir / "checkpoint"
        card = import_folder(folder, target, context.callbacks)
        if fetched is not None:
            shutil.rmtree(fetched)
        made = {"folder": str(target.absolute()), "card": card.model_dump(mode="json")}
        return made if commit is None else made | {"commit": commit}

    @staticmethod
    def _download(source: HubSource, secret: Path, target: Path, context: BodyContext) -> str:
        """Fetch the repository; return its commit.

        The token outlives a killed child, not the end of the job.
        """
        token = secret.read_text() if secret.is_file() else None
        try:
            return download_hub(source.repo_id, source.revision, token, target, context.callbacks)
        except Exception:
            secret.unlink(missing_ok=True)
            raise


class PruneTask(_FillsCheckpoint):
    kind = JobKind.PRUNE
    inputs: type[Inputs] = PruneInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = PruneJob.model_validate(spec)
        service.require(session, job.checkpoint_id)
        teacher = service.require_ready(session, job.teacher_id)
        folder = LocalBlobs(settings.blobs).path(str(teacher.blob)).absolute()
        calibration = None
        if job.dataset_version_id is not None:
            version = session.get(DatasetVersion, job.dataset_version_id)
            if version is None:
                raise NotFound("The dataset version for calibration was removed.")
            calibration = str(conversations_path(version, settings).absolute())
        licence = CheckpointCard.model_validate(teacher.card).licence
        return PruneInputs(
            teacher=str(folder), calibration=calibration, prune=job.prune, licence=licence
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
