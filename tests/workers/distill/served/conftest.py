"""A server around a tiny random model, and the same model here."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.served import MODEL, Served, serving
from tests.workers.distill import tiny
from workers.distill.served.client import Server

QUICK = (0.01, 0.01)


def sharp(seed: int = 0) -> Any:
    """Return a model whose distributions have a head."""
    model = tiny.llama(seed=seed, tied=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(Served(sharp(), tiny.tokenizer())) as found:
        yield found


def server_of(served: Served, **changes: Any) -> Server:
    values: dict[str, Any] = {"allowed": served.allowed, "backoff": QUICK, **changes}
    return Server(served.url, MODEL, **values)
