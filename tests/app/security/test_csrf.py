"""Which unsafe requests count as ours."""

import pytest

from app.security import csrf

HOST = {"host": "127.0.0.1:8321"}


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8321"}, False),
        ({"origin": "http://127.0.0.1:8321"}, True),
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({}, False),
        ({"authorization": "Bearer x"}, True),
        ({"authorization": "Basic x"}, False),
    ],
)
def test_unsafe_request(headers: dict[str, str], accepted: bool) -> None:
    assert (csrf.refusal("POST", {**HOST, **headers}) is None) is accepted


def test_safe_methods_need_nothing() -> None:
    assert csrf.refusal("GET", HOST) is None


@pytest.mark.parametrize(
    ("kind", "length", "accepted"),
    [
        ("application/json", "2", True),
        ("application/json; charset=utf-8", "2", True),
        ("text/plain", "2", False),
        ("text/plain", "0", False),
        ("", "0", True),
        ("", "2", False),
        ("application/offset+octet-stream", "9", True),
    ],
)
def test_body_types(kind: str, length: str, accepted: bool) -> None:
    headers = {"content-length": length, **({"content-type": kind} if kind else {})}
    assert (csrf.content_type_refusal("POST", headers) is None) is accepted
