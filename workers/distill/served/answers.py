"""Answers of a served checkpoint to chat requests; whatever comes of each one is kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workers.distill.callbacks import Callbacks, Stopped
from workers.distill.errors import EndpointContextError, EndpointError
from workers.distill.served.client import Endpoint, Json, Question

LimitField = Literal["max_tokens", "max_completion_tokens"]
CARRIED = ("messages", "tools", "tool_choice", "response_format", "parallel_tool_calls", "stop")
"""What of a logged request goes to the server; sampling is the job's own."""
IN_A_ROW = 3
"""So many lost answers, each after all its tries, and the server is given up."""
BYTES_A_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Asking:
    """How answers are made: most tokens, temperature, seed, and what the server calls the first."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    limit_field: LimitField = "max_tokens"

    def body(self, model: str, request: Mapping[str, Any]) -> Json:
        carried = {name: request[name] for name in CARRIED if request.get(name) is not None}
        return {
            **carried,
            "model": model,
            "temperature": self.temperature,
            "seed": self.seed,
            self.limit_field: self.max_new_tokens,
        }


@dataclass(slots=True)
class Answered:
    """Responses by the request's place, as the server gave them or as {"error": {…}}; counts."""

    responses: dict[int, Json] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    """Error name → how many requests have no answer for it."""
    examples: dict[str, str] = field(default_factory=dict)
    """Error name → the first sentence about it."""
    finished: Counter[str] = field(default_factory=Counter)
    """finish_reason → answers."""
    refused: int = 0
    """Answers that the server's own filter held back, or in which the model refuses."""

    @property
    def answers(self) -> int:
        return self.finished.total()

    def sentences(self, asked: int) -> list[str]:
        """Say what came of all requests; the counts add up to `asked`."""
        ends = ", ".join(f"{n} {reason}" for reason, n in sorted(self.finished.items()))
        found = [f"{self.answers} of {asked} requests are answered ({ends or 'none'})."]
        if self.refused:
            found.append(f"{self.refused} of the answers are refusals, as the server marks them.")
        found += [
            f"{count} have no answer ({name}): {self.examples[name]}"
            for name, count in sorted(self.failed.items())
        ]
        left = asked - self.answers - self.failed.total()
        return [*found, f"{left} were not asked."] if left else found


class AnswersStopped(Stopped):
    """Asked to stop; `answered` holds what had come."""

    def __init__(self, answered: Answered) -> None:
        super().__init__(f"Stopped after {answered.answers} answers.")
        self.answered = answered


def ask_for_answers(
    endpoint: Endpoint,
    requests: Sequence[Mapping[str, Any]],
    asking: Asking,
    callbacks: Callbacks,
) -> Answered:
    """Ask for a chat completion of each request; one that fails keeps its error in its place.

    The server is given up at an error that every request would meet (key, model, address), or when
    three answers in a row were lost after all tries. Errors: that EndpointError where nothing is
    answered; AnswersStopped with what is.
    """
    found, in_a_row, fatal = Answered(), 0, None

    def told(place: int, answer: Json | EndpointError) -> bool:
        nonlocal in_a_row, fatal
        error = answer if isinstance(answer, EndpointError) else _keep(found, place, answer)
        if error is None:
            in_a_row = 0
        else:
            _lose(found, place, error)
            in_a_row = in_a_row + 1 if error.passing else in_a_row
            if in_a_row >= IN_A_ROW or _met_by_all(error):
                fatal = error
        callbacks.progress(len(found.responses), len(requests), "answers")
        return fatal is None

    bound = (1 << 20) + asking.max_new_tokens * BYTES_A_TOKEN
    server = endpoint.server
    questions = [
        Question("/chat/completions", asking.body(server.model, request), most_bytes=bound)
        for request in requests
    ]
    try:
        endpoint.ask_all(questions, told)
    except Stopped as stopped:
        raise AnswersStopped(found) from stopped
    if fatal is not None and not found.answers:
        raise fatal
    return found


def _met_by_all(error: EndpointError) -> bool:
    """Whether asking anything else would fail alike: of what is wrong with one request, no."""
    named = type(error).__name__
    return named in {"EndpointKeyError", "EndpointModelError", "EndpointRefusedError"}


def _keep(found: Answered, place: int, answer: Json) -> EndpointError | None:
    """Keep an answer; return what is wrong with one that has no choice."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        return EndpointError("The answer has no choice with a message.")
    found.responses[place] = answer
    reason = first.get("finish_reason")
    found.finished[str(reason or "without a reason")] += 1
    if message.get("refusal") or reason == "content_filter":
        found.refused += 1
    return None


def _lose(found: Answered, place: int, error: EndpointError) -> None:
    name = "too long" if isinstance(error, EndpointContextError) else type(error).__name__
    found.failed[name] += 1
    found.examples.setdefault(name, str(error))
    found.responses[place] = {"error": {"type": type(error).__name__, "message": str(error)}}
