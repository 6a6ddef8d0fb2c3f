"""A small server in vLLM's shape on loopback, around a tiny model, with switches for its faults."""

import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

MODEL = "big/teacher"


@dataclass
class Faults:
    """What goes wrong, by request: each number counts down."""

    busy: int = 0
    """So many answers of 429 first."""
    broken: int = 0
    """So many answers of 500 first."""
    cut: int = 0
    """So many connections closed without an answer."""
    hang: float = 0.0
    """Seconds before an answer."""
    short_positions: bool = False
    none_positions: bool = False
    ignores_logprobs: bool = False
    refuses_logprobs: bool = False
    shifted_ids: int = 0
    """Added to every id of the log-probabilities but the token's own."""
    other_ids: bool = False
    """Re-encodes: the token's own id is not among the keys."""
    html: bool = False
    huge: bool = False
    redirect: str | None = None
    no_chat: bool = False
    bad_prompt: str | None = None
    """Chat requests with this text in them are refused with 400."""
    dies_after: int | None = None
    """Every request beyond so many loses its connection."""


@dataclass
class Served:
    """What the server has and was asked."""

    model: Any
    tokenizer: Any
    most: int = 20
    key: str | None = None
    context: int = 256
    tokenizes: bool = True
    completion_tokens_only: bool = False
    faults: Faults = field(default_factory=Faults)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    address: str = ""
    lock: Any = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    @property
    def allowed(self) -> tuple[str, ...]:
        return (self.address.removeprefix("http://"),)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    @torch.inference_mode()
    def prompt_logprobs(self, ids: Sequence[int], k: int) -> list[dict[str, Any] | None]:
        logits = self.model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].float()
        logp = torch.log_softmax(logits, -1)
        found: list[dict[str, Any] | None] = [None]
        for row, token in zip(logp, ids[1:], strict=True):
            rank = int((row > row[token]).sum()) + 1
            entry = {str(token): self._entry(token, row[token], rank)}
            values, tops = row.topk(k)
            for place, (value, top) in enumerate(zip(values, tops.tolist(), strict=True), 1):
                entry[str(top + self.faults.shifted_ids)] = self._entry(top, value, place)
            if self.faults.other_ids:
                entry.pop(str(token))
            found.append(entry)
        return found

    def _entry(self, token: int, logp: Any, rank: int) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"logprob": float(logp), "rank": rank, "decoded_token": text}

    def refused(self, message: str) -> tuple[int, Any]:
        return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and JSON for a request that no fault of the line has met."""
        if path == "/v1/models":
            entry = {"id": MODEL, "root": "org/tiny", "max_model_len": self.context}
            return 200, {"object": "list", "data": [entry]}
        if path == "/tokenize" and self.tokenizes:
            ids = self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return 200, {"tokens": ids, "count": len(ids)}
        if body.get("model") != MODEL and path in ("/v1/completions", "/v1/chat/completions"):
            message = f"The model `{body.get('model')}` does not exist."
            return 404, {"error": {"message": message}}
        if path == "/v1/completions":
            return self.completion(body)
        if path == "/v1/chat/completions" and not self.faults.no_chat:
            return self.chat(body)
        return 404, {"detail": "Not Found"}

    def completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, k, faults = body["prompt"], body.get("prompt_logprobs"), self.faults
        if len(ids) + body["max_tokens"] > self.context:
            return self.refused(
                f"This model's maximum context length is {self.context} tokens. However, you "
                f"requested {len(ids) + body['max_tokens']} tokens."
            )
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        if faults.refuses_logprobs:
            return self.refused("prompt_logprobs are not supported by this deployment")
        if k is not None and not faults.ignores_logprobs:
            if k > self.most:
                return self.refused(
                    f"Requested prompt logprobs of {k}, which is greater than max allowed: "
                    f"{self.most}"
                )
            found = self.prompt_logprobs(ids, k)
            if faults.short_positions:
                found = found[:-2]
            if faults.none_positions:
                found = [None] * len(found)
            choice["prompt_logprobs"] = found
        return 200, {"object": "text_completion", "model": MODEL, "choices": [choice]}

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.completion_tokens_only and "max_tokens" in body:
            return self.refused("Unsupported parameter: 'max_tokens'.")
        last = body["messages"][-1]["content"]
        if self.faults.bad_prompt is not None and self.faults.bad_prompt in last:
            return self.refused("this prompt cannot be templated")
        message = {"role": "assistant", "content": json.dumps({"echo": last[:40]})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"model": MODEL, "choices": [choice], "usage": {"total_tokens": 3}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    served: Served

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests read what was asked."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        served, faults = self.served, self.served.faults
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        with served.lock:
            served.asked.append((self.path, body))
            served.keys.append(self.headers.get("Authorization"))
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
            dead = faults.dies_after is not None and len(served.asked) > faults.dies_after
            fault = self._next_fault(faults)
        try:
            if faults.hang:
                served.closing.wait(faults.hang)
            if dead or fault == "cut":
                self.close_connection = True
                return
            self._answer(served, faults, fault, body)
        finally:
            with served.lock:
                served.at_once -= 1

    @staticmethod
    def _next_fault(faults: Faults) -> str | None:
        for name in ("busy", "broken", "cut"):
            if getattr(faults, name) > 0:
                setattr(faults, name, getattr(faults, name) - 1)
                return name
        return None

    def _answer(
        self, served: Served, faults: Faults, fault: str | None, body: dict[str, Any]
    ) -> None:
        if fault == "busy":
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        elif fault == "broken":
            self._send(500, {"error": {"message": "boom"}})
        elif served.key is not None and self.headers.get("Authorization") != f"Bearer {served.key}":
            given = self.headers.get("Authorization", "")
            self._send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        elif faults.redirect is not None:
            self._send(307, {}, {"Location": faults.redirect})
        elif faults.html:
            self._send(200, "<html>It works!</html>")
        elif faults.huge:
            self._send(200, "x" * (40 << 20))
        else:
            self._send(*served.answer(self.path, body))

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        try:
            self.send_response(status)
            for name, text in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that hangs up."""


@contextmanager
def serving(served: Served, tls: tuple[Path, Path] | None = None) -> Iterator[Served]:
    """Serve until the body ends; `served.address` is where. tls: certificate and key."""
    handler = type("Handler", (_Handler,), {"served": served})
    server = _Server(("127.0.0.1", 0), handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, tls))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = False  # joined below: none may compute while the interpreter ends
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        served.closing.set()
        server.shutdown()
        server.server_close()
