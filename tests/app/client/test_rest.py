"""A POST with a key is sent again where its answer was lost, always with that key."""

import json

import httpx
import pytest

from app.client import rest
from app.client.rest import Api, Refused, Unreachable


def test_a_lost_answer_is_asked_for_again_with_the_same_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rest, "RETRY_SECONDS", 0)
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers["idempotency-key"], json.loads(request.content)["name"]))
        if len(seen) == 1:
            raise httpx.ReadError("cut")
        return httpx.Response(201, json={"number": 1})

    http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1")
    assert Api(http, patience=5).post_once("/runs", {"name": "kd"}, key="k") == {"number": 1}
    assert seen == [("k", "kd"), ("k", "kd")]
    seen.clear()
    with pytest.raises(Unreachable):
        Api(http, patience=0).post_once("/runs", {"name": "kd"}, key="k")
    assert len(seen) == 1


def test_a_refusal_is_not_sent_again() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(422, json={"error": "InvalidInput", "message": "No."})

    http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1")
    with pytest.raises(Refused, match="No"):
        Api(http, patience=5).post_once("/runs", {}, key="k")
    assert len(seen) == 1
