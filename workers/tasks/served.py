"""What tasks know of a served checkpoint: where it is, which key opens it, whom it may reach."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.errors import Conflict
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard, EndpointSource
from app.storage.blobs import LocalBlobs
from workers.distill.served.client import Endpoint, Server, read_key
from workers.job.task import Inputs


class ServerInputs(Inputs):
    """A server as the child receives it. The key is a file's name: it is on no pipe."""

    base_url: str
    model: str
    at_once: int
    key_file: str
    allowed: tuple[str, ...]

    def server(self, backoff: tuple[float, ...] | None = None) -> Server:
        """Return whom to ask. Errors: EndpointRefusedError for a key of another host."""
        server = Server(self.base_url, self.model, self.allowed, at_once=self.at_once)
        key = read_key(Path(self.key_file), server)
        return replace(server, key=key, backoff=server.backoff if backoff is None else backoff)

    def endpoint(
        self, should_stop: Callable[[], bool], backoff: tuple[float, ...] | None = None
    ) -> Endpoint:
        return Endpoint(self.server(backoff), should_stop)


def server_inputs(source: EndpointSource, checkpoint_id: int, settings: Settings) -> ServerInputs:
    return ServerInputs(
        base_url=source.base_url,
        model=source.model,
        at_once=source.at_once,
        key_file=str(checkpoints.key_file(settings, checkpoint_id).absolute()),
        allowed=settings.endpoint_hosts,
    )


def server_of(
    session: Session, checkpoint_id: int, settings: Settings
) -> tuple[ServerInputs | None, str, CheckpointCard]:
    """Return a ready checkpoint's server (None: its weights are here), folder and card."""
    row = checkpoints.require_ready(session, checkpoint_id)
    folder = str(LocalBlobs(settings.blobs).path(str(row.blob)).absolute())
    card = CheckpointCard.model_validate(row.card)
    if card.server is None:
        return None, folder, card
    source = EndpointSource(
        base_url=card.server.base_url, model=card.server.model, at_once=card.server.at_once
    )
    return server_inputs(source, row.id, settings), folder, card


def require_rows(name: str, card: CheckpointCard) -> None:
    """Raise Conflict where no teacher rows can be captured from a checkpoint."""
    if card.server is not None and card.server.top is None:
        raise Conflict(f"{name} gives no log-probabilities. {card.server.sentence}")
