"""Requests to `/api/v1` that answer with JSON or raise a sentence."""

import time
from collections.abc import Mapping
from typing import Any

import httpx

PREFIX = "/api/v1"
RETRY_SECONDS = 1.0


class Unreachable(Exception):
    """No server answered, or it refused who is asking."""


class Refused(Exception):
    """The server's answer is an error: its sentence, the error's name and the HTTP status."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name


class Api:
    """One connection. `patience` is for how long reading rides over a server that restarts."""

    def __init__(self, http: httpx.Client, *, patience: float = 60) -> None:
        self.http = http
        self.patience = patience

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON under /api/v1. Raises Unreachable after `patience` seconds, Refused."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self.send("GET", PREFIX + path, params=dict(params or {})).json()
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON answer; sent once, since a second one might do the thing twice."""
        answer = self.send("POST", PREFIX + path, json=body)
        return answer.json() if answer.content else None

    def post_once(self, path: str, body: Mapping[str, Any], *, key: str) -> Any:
        """Return the JSON answer of a POST that the server does once for a key.

        So it may be sent again, for `patience` seconds, where an answer was lost.
        """
        deadline = time.monotonic() + self.patience
        headers = {"Idempotency-Key": key}
        while True:
            try:
                return self.send("POST", PREFIX + path, json=body, headers=headers).json()
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.send("PUT", PREFIX + path, json=body).json()

    def delete(self, path: str) -> None:
        self.send("DELETE", PREFIX + path)

    def send(self, method: str, url: str, **parts: Any) -> httpx.Response:
        """Send one request and check the answer. Raises Unreachable, Refused."""
        try:
            answer = self.http.request(method, url, **parts)
        except httpx.TransportError as error:
            where = self.http.base_url
            raise Unreachable(f"Nothing answers at {where}: {error}.") from error
        if answer.is_success:
            return answer
        raise _refusal(answer, str(self.http.base_url))


def _refusal(answer: httpx.Response, where: str) -> Exception:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    message = body.get("message") or f"{where} answered {answer.status_code}."
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Unreachable(f"{where} does not accept the API token of this home.")
    if answer.is_server_error and body.get("request_id"):
        message = f"The server failed on this request; its log tells why ({body['request_id']})."
    fields = body.get("fields") or {}
    if fields and not all(str(text) in message for text in fields.values()):
        message += " " + " ".join(f"{name}: {text}" for name, text in fields.items())
    return Refused(answer.status_code, body.get("error", "Error"), message)
