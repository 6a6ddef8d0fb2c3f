"""What a server is found to give, and what is named where it gives nothing of use."""

from typing import Any

import pytest

from app.specs.checkpoint import EndpointSource, ServerFacts
from tests.support.served import MODEL, Faults, Served
from tests.workers.distill import tiny
from tests.workers.distill.conftest import CHATML, make_tokenizer
from tests.workers.distill.served.conftest import server_of
from workers.distill.errors import (
    EndpointContextError,
    EndpointError,
    EndpointKeyError,
    EndpointModelError,
    EndpointTokenizerError,
)
from workers.distill.served.client import Endpoint
from workers.distill.served.probe import probe

V = len(tiny.tokenizer())


def found_of(
    served: Served, *, tokenizer: Any = "own", model: str = MODEL
) -> tuple[ServerFacts, int | None]:
    source = EndpointSource(base_url=served.url, model=model)
    chosen = tiny.tokenizer() if tokenizer == "own" else tokenizer
    with Endpoint(server_of(served)) as endpoint:
        return probe(endpoint, source, chosen, V, lambda _: None)


@pytest.mark.parametrize(("most", "found"), [(20, 20), (1, 1), (64, 64), (500, 256)])
def test_the_largest_k_is_found(served: Served, most: int, found: int) -> None:
    served.most = most
    facts, context = found_of(served)
    assert (facts.top, context) == (found, 256)
    assert facts.sentence == (
        f"Logit distillation with the top {found} a token at T = 1, and text."
    )
    assert "to the same ids" in facts.tokenizer_check
    asked = [b["prompt_logprobs"] for p, b in served.asked if p == "/v1/completions"]
    assert len(asked) <= 3, "the server's own word is taken"


def test_the_largest_k_is_found_where_the_server_names_none(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.most = 37
    whole = served.refused
    monkeypatch.setattr(served, "refused", lambda _: whole("too many logprobs"))
    assert found_of(served)[0].top == 37


@pytest.mark.parametrize("faults", [Faults(ignores_logprobs=True), Faults(refuses_logprobs=True)])
def test_a_server_without_log_probabilities_is_for_text_only(
    served: Served, faults: Faults
) -> None:
    served.faults = faults
    facts, _ = found_of(served)
    assert facts.top is None
    assert facts.sentence.startswith("Text only: sequence-level. ")
    assert "logprobs" in facts.why_text_only


def test_without_a_tokenizer_it_is_for_text_only_and_says_what_it_serves(served: Served) -> None:
    facts, _ = found_of(served, tokenizer=None)
    assert facts.top is None
    assert facts.why_text_only == (
        "No tokenizer is named for it. The server says it serves org/tiny."
    )


def test_a_server_without_chat_gives_rows_only(served: Served) -> None:
    served.faults.no_chat = True
    facts, _ = found_of(served)
    assert (facts.top, facts.chat) == (20, False)
    assert facts.sentence.endswith("no chat answers.")
    with pytest.raises(EndpointError, match="404"):
        found_of(served, tokenizer=None)


def test_what_the_server_calls_the_limit_is_found(served: Served) -> None:
    assert found_of(served)[0].limit_field == "max_tokens"
    served.completion_tokens_only = True
    assert found_of(served)[0].limit_field == "max_completion_tokens"


def test_another_model_is_named_with_what_is_served(served: Served) -> None:
    with pytest.raises(EndpointModelError, match=f"It serves {MODEL}: give one"):
        found_of(served, model="other")


@pytest.mark.parametrize("tokenizes", [True, False])
def test_another_tokenizer_is_refused(served: Served, tokenizes: bool) -> None:
    served.tokenizes = tokenizes
    with pytest.raises(EndpointTokenizerError, match="own tokenizer"):
        found_of(served, tokenizer=make_tokenizer(CHATML))


def test_the_same_tokenizer_is_found_by_its_tokens_texts(served: Served) -> None:
    served.tokenizes = False
    assert "tokens have the same text" in found_of(served)[0].tokenizer_check


def test_ids_beyond_the_vocabulary_are_refused(served: Served) -> None:
    served.faults.shifted_ids = 10_000
    with pytest.raises(EndpointTokenizerError, match="512 entries"):
        found_of(served)


def test_a_context_too_short_for_anything_is_named(served: Served) -> None:
    served.context = 20
    with pytest.raises(EndpointContextError, match="longer than big/teacher reads"):
        found_of(served)


def test_a_missing_key_is_named(served: Served) -> None:
    served.key = "sk-1"
    with pytest.raises(EndpointKeyError, match="wants an API key"):
        found_of(served)
