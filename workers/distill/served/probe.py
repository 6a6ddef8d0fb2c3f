"""What a server can do: found out once, when its checkpoint is registered."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from app.specs.checkpoint import EndpointSource, ServerFacts
from workers.distill.errors import (
    EndpointAnswerError,
    EndpointError,
    EndpointLogprobsError,
    EndpointModelError,
    EndpointTokenizerError,
)
from workers.distill.served.answers import Asking, LimitField
from workers.distill.served.client import Endpoint, Json, Question
from workers.distill.served.scoring import entries_of, head_of, scoring

MOST_TOP = 256
"""The largest k asked for: rows keep far fewer."""
TEXTS = (
    "The parcel was sent on Monday, 24 November; its number is 4711-0815.",
    'Answer as JSON: {"queue": "billing", "urgent": false, "amount": 12.50}',
    "Größe 42, naïve café, 東京, 🙂 – and\n\n    four spaces before this.",
)
"""What both tokenizers encode: digits, punctuation, other scripts, white space."""
NAMED = 10
"""How many served names an error lists."""
_ALLOWED = re.compile(r"max(?:imum)? allowed\D{0,10}(\d+)", re.IGNORECASE)
_UNREADABLE = "\ufffd"


def probe(
    endpoint: Endpoint,
    source: EndpointSource,
    tokenizer: Any | None,
    vocabulary: int,
    say: Callable[[str], None],
) -> tuple[ServerFacts, int | None]:
    """Return what the server gives, and the context length it names (None: it does not).

    Errors: EndpointError, named by what is wrong, where it can be of no use as it is.
    """
    entry = _served(endpoint, source.model)
    context = entry.get("max_model_len")
    chat, limit = _chat(endpoint, source.model)
    facts: dict[str, Any] = {
        "base_url": source.base_url,
        "model": source.model,
        "at_once": source.at_once,
        "chat": chat is None,
        "limit_field": limit,
    }
    if tokenizer is None:
        root = entry.get("root")
        hint = f" The server says it serves {root}." if isinstance(root, str) and root else ""
        facts["why_text_only"] = f"No tokenizer is named for it.{hint}"[:300]
    else:
        ids = [int(i) for text in TEXTS for i in _encode(tokenizer, text)]
        try:
            top, answer = _most(endpoint, ids, vocabulary)
        except EndpointLogprobsError as error:
            facts["why_text_only"] = str(error)
        else:
            facts["top"] = top
            facts["tokenizer_check"] = _agreement(endpoint, tokenizer, ids, answer)
            say(facts["tokenizer_check"])
    if chat is not None and "top" not in facts:
        raise chat
    found = ServerFacts.model_validate(facts)
    return found, context if isinstance(context, int) and context > 0 else None


def _served(endpoint: Endpoint, model: str) -> Json:
    """Return the server's entry of a model; an empty one where it does not list any.

    Errors: EndpointModelError naming what it serves instead.
    """
    try:
        answer = endpoint.ask(Question("/models", most_bytes=16 << 20))
    except EndpointAnswerError as error:
        if "404" in str(error):  # a server without the list may serve it all the same
            return {}
        raise
    entries = answer.get("data")
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    named = [str(e.get("id")) for e in entries]
    if model in named:
        return dict(entries[named.index(model)])
    if not named:
        return {}
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    raise EndpointModelError(
        f"{endpoint.server.place.named} does not serve {model}. It serves "
        f"{', '.join(named[:NAMED])}{more}: give one of these names."
    )


def _chat(endpoint: Endpoint, model: str) -> tuple[EndpointError | None, LimitField]:
    """Return why it answers no chat completion (None: it does), and what it calls the limit."""
    request = {"messages": [{"role": "user", "content": "Say yes."}]}
    trouble: EndpointError | None = None
    names: tuple[LimitField, ...] = ("max_tokens", "max_completion_tokens")
    for name in names:
        body = Asking(max_new_tokens=16, limit_field=name).body(model, request)
        try:
            answer = endpoint.ask(Question("/chat/completions", body))
        except EndpointAnswerError as error:
            trouble = error
            continue
        if isinstance(answer.get("choices"), list) and answer["choices"]:
            return None, name
        return EndpointAnswerError("The server's chat answer has no choices."), name
    return trouble, "max_tokens"


def _most(endpoint: Endpoint, ids: Sequence[int], vocabulary: int) -> tuple[int, Json]:
    """Return the largest k the server gives of a prompt, at most MOST_TOP, and such an answer.

    Errors: EndpointLogprobsError where it gives none.
    """
    low, high, named = 0, min(MOST_TOP, vocabulary), 0
    guess, best = high, None
    trouble = EndpointLogprobsError("The server gives no log-probabilities.")
    while low < high:
        try:
            best, low = _scored(endpoint, ids, guess, vocabulary), guess
            high = low if guess == named else high  # the server's own word
        except EndpointLogprobsError as error:
            trouble, high = error, guess - 1
            told = _ALLOWED.search(str(error))
            named = int(told[1]) if told else 0
        guess = named if low < named <= high else (low + high + 1) // 2
    if best is None:
        raise trouble
    return low, best


def _scored(endpoint: Endpoint, ids: Sequence[int], top: int, vocabulary: int) -> Json:
    """Return the answer with k = `top`, once each of its entries was found to be sound."""
    answer = endpoint.ask(scoring(endpoint.server, ids, top))
    for entry in entries_of(answer, ids):
        try:
            head_of(entry, top, vocabulary)
        except EndpointAnswerError as error:  # fewer than asked for, without a word
            raise EndpointLogprobsError(str(error)) from error
    return answer


def _agreement(endpoint: Endpoint, tokenizer: Any, ids: Sequence[int], answer: Json) -> str:
    """Say how the tokenizers were compared. Errors: EndpointTokenizerError where they differ."""
    for text in TEXTS:
        body = {"model": endpoint.server.model, "prompt": text, "add_special_tokens": False}
        try:
            theirs = endpoint.ask(Question("/tokenize", body, at_root=True)).get("tokens")
        except EndpointError:
            return _by_echo(tokenizer, ids, answer)
        if theirs != _encode(tokenizer, text):
            raise EndpointTokenizerError(
                f"The server encodes {text[:30]!r}… to other ids than the tokenizer named for it. "
                "Name the served model's own tokenizer."
            )
    return f"The server encodes {len(TEXTS)} texts to the same ids."


def _by_echo(tokenizer: Any, ids: Sequence[int], answer: Json) -> str:
    """Compare the texts that the server names its tokens by, where it does not tokenize.

    Errors: EndpointTokenizerError where fewer than nine in ten are the tokenizer's own.
    """
    pairs: dict[int, str] = {}
    for entry in entries_of(answer, ids):
        for number, value in entry.items():
            text = value.get("decoded_token")
            if isinstance(text, str) and text.strip() and _UNREADABLE not in text:
                pairs[int(number)] = text
    if not pairs:
        return (
            "The server names no texts of its tokens: the number of ids is all that was compared."
        )
    same = {t for t, name in pairs.items() if tokenizer.decode([t]).strip() == name.strip()}
    if len(same) < 0.9 * len(pairs):
        token = min(pairs.keys() - same)
        raise EndpointTokenizerError(
            f"Token {token} is {pairs[token]!r} for the server and {tokenizer.decode([token])!r} "
            f"for the tokenizer named for it; {len(pairs) - len(same)} of {len(pairs)} differ. "
            "Name the served model's own tokenizer."
        )
    return f"{len(same)} of {len(pairs)} tokens have the same text for the server."


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
