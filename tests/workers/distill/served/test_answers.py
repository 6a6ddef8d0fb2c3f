"""Answers as text: each request has its answer or its error, and the counts add up."""

import threading
from typing import Any

import pytest

from tests.support.served import MODEL, Served
from tests.workers.distill.served.conftest import server_of
from workers.distill.callbacks import Silent
from workers.distill.errors import EndpointKeyError, EndpointUnreachableError
from workers.distill.served.answers import Answered, AnswersStopped, Asking, ask_for_answers
from workers.distill.served.client import Endpoint

REQUESTS = [
    {"messages": [{"role": "user", "content": f"ticket {n}"}], "metadata": {"n": n}}
    for n in range(9)
]
ASKING = Asking(max_new_tokens=12, temperature=0.5, seed=3)


def run(served: Served, **changes: Any) -> Answered:
    with Endpoint(server_of(served, **changes)) as endpoint:
        return ask_for_answers(endpoint, REQUESTS, ASKING, Silent())


def test_every_request_is_answered_in_its_place(served: Served) -> None:
    served.faults.busy = 2
    found = run(served)
    said = [found.responses[n]["choices"][0]["message"]["content"] for n in range(9)]
    assert said == [f'{{"echo": "ticket {n}"}}' for n in range(9)]
    assert found.sentences(9) == ["9 of 9 requests are answered (9 stop)."]
    body = served.asked[0][1]
    assert body == {
        "messages": REQUESTS[0]["messages"],
        "model": MODEL,
        "temperature": 0.5,
        "seed": 3,
        "max_tokens": 12,
    }


def test_one_that_is_refused_keeps_its_error_in_its_place(served: Served) -> None:
    served.faults.bad_prompt = "ticket 4"
    found = run(served)
    assert sorted(found.responses) == list(range(9))
    assert found.responses[4]["error"]["type"] == "EndpointAnswerError"
    first, second = found.sentences(9)
    assert first == "8 of 9 requests are answered (8 stop)."
    assert second.startswith("1 have no answer (EndpointAnswerError): ")
    assert "this prompt cannot be templated" in second


def test_a_server_that_goes_away_is_given_up_and_what_came_is_kept(served: Served) -> None:
    served.faults.dies_after = 4
    found = run(served, at_once=1)
    assert found.answers == 4
    assert found.failed["EndpointUnreachableError"] == 3
    assert found.sentences(9)[-1] == "2 were not asked."
    assert found.answers + found.failed.total() + 2 == 9


def test_nothing_answered_is_the_error_itself(served: Served) -> None:
    served.key = "sk-1"
    with pytest.raises(EndpointKeyError):
        run(served)
    assert len(served.asked) <= 8, "what every request would meet is met once by each under way"
    served.key, served.faults.dies_after = None, 0
    with pytest.raises(EndpointUnreachableError):
        run(served)


def test_a_stop_keeps_what_has_come(served: Served) -> None:
    stop = threading.Event()

    class Stops(Silent):
        def progress(self, done: int, total: int, unit: str) -> None:
            if done >= 3:
                served.faults.hang = 30.0
                stop.set()

    with (
        Endpoint(server_of(served, at_once=1), stop.is_set) as endpoint,
        pytest.raises(AnswersStopped) as stopped,
    ):
        ask_for_answers(endpoint, REQUESTS, ASKING, Stops())
    assert stopped.value.answered.answers >= 3


def test_refusals_are_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(body: dict[str, Any]) -> tuple[int, Any]:
        message = {"role": "assistant", "content": None, "refusal": "I cannot."}
        reason = "content_filter" if "5" in body["messages"][0]["content"] else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return 200, {"choices": [choice]}

    monkeypatch.setattr(served, "chat", refuses)
    found = run(served)
    assert found.refused == 9
    assert found.sentences(9)[0] == "9 of 9 requests are answered (1 content_filter, 8 stop)."
