"""Asking a server: bounded in number, time and size; retried where that helps; stopped at once.

A name is resolved for every request, each address judged, and the connection made to one that was
judged: a name that changes its mind leads nowhere else. No redirect is followed, no proxy of the
environment is used, and the key leaves with requests to the one host it was given for.
"""

import asyncio
import json
import random
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from app.specs.endpoint import Address, Place, place_of, refusal
from workers.distill.callbacks import Stopped
from workers.distill.errors import (
    EndpointAnswerError,
    EndpointBusyError,
    EndpointContextError,
    EndpointError,
    EndpointKeyError,
    EndpointLogprobsError,
    EndpointModelError,
    EndpointRefusedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
)

Json = dict[str, Any]
POLL_SECONDS = 0.2
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds before asking again; each is taken up to a quarter longer, so that not all come back
together."""
LONGEST_WAIT = 60.0
SMALL_ANSWER = 1 << 20
_SAID = 300
"""Characters of a server's own words that an error repeats."""
_TOO_LONG = (
    "context length",
    "maximum context",
    "max_model_len",
    "maximum model length",
    "too many tokens",
    "context window",
    "exceed_context_size",
)
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Server:
    """Where a checkpoint is served, and how it may be asked."""

    base_url: str
    model: str
    allowed: tuple[str, ...] = ()
    """Hosts and networks that are not public and may be asked (see app.specs.endpoint)."""
    key: str | None = field(default=None, repr=False)
    at_once: int = 8
    connect_seconds: float = 10.0
    answer_seconds: float = 300.0
    backoff: tuple[float, ...] = BACKOFF

    @property
    def place(self) -> Place:
        return place_of(self.base_url)


@dataclass(frozen=True, slots=True)
class Question:
    """One request; a body makes it a POST. `most_bytes` bounds the answer."""

    path: str
    body: Json | None = None
    most_bytes: int = SMALL_ANSWER
    at_root: bool = False
    """Beside the base URL's /v1, not below it."""


def read_key(path: Path, server: Server) -> str | None:
    """Return the API key kept for a server; None where there is none.

    Errors: EndpointRefusedError where it was kept for another host.
    """
    if not path.is_file():
        return None
    host, _, key = path.read_text().partition("\n")
    if host != server.place.named:
        raise EndpointRefusedError(
            f"The key that is kept belongs to {host}, not to {server.place.named}. Give it again."
        )
    return key or None


class Endpoint:
    """A server, asked from one thread. A context manager: connections are closed at its end."""

    def __init__(self, server: Server, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.server = server
        self._should_stop = should_stop
        self._runner = asyncio.Runner()
        self._client: httpx.AsyncClient | None = None
        self._gate = asyncio.Semaphore(server.at_once)
        self._chance = random.Random(id(self))  # noqa: S311 - spreads load over time

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._runner.run(self._client.aclose())
        self._runner.close()

    def ask(self, question: Question) -> Json:
        """Return one answer. Errors: Stopped, EndpointError."""
        return self.ask_all([question])[0]

    def ask_all(
        self,
        questions: Sequence[Question],
        told: Callable[[int, Json | EndpointError], bool] | None = None,
    ) -> list[Json]:
        """Return the answers in the questions' order.

        `told` is given each answer or error as it comes and returns whether to go on; with it, an
        error of one question is not raised. Errors: Stopped within a second of `should_stop`, with
        every request under way given up; else the first EndpointError.
        """
        return self._runner.run(self._all(questions, told))

    async def _all(
        self,
        questions: Sequence[Question],
        told: Callable[[int, Json | EndpointError], bool] | None,
    ) -> list[Json]:
        tasks = {
            asyncio.ensure_future(self._gated(question)): i for i, question in enumerate(questions)
        }
        answers: dict[int, Json] = {}
        left = set(tasks)
        try:
            while left:
                if self._should_stop():
                    raise Stopped(f"Stopped after {len(answers)} answers.")
                done, left = await asyncio.wait(
                    left, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not self._take(done, tasks, answers, told):
                    break
        finally:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        return [answers[i] for i in sorted(answers)]

    @staticmethod
    def _take(
        done: set["asyncio.Task[Json]"],
        tasks: Mapping["asyncio.Task[Json]", int],
        answers: dict[int, Json],
        told: Callable[[int, Json | EndpointError], bool] | None,
    ) -> bool:
        go_on = True
        for task in done:
            task.exception()  # seen, so that asyncio complains of none beside the one raised
        for task in sorted(done, key=tasks.__getitem__):
            error = task.exception()
            if error is not None and (told is None or not isinstance(error, EndpointError)):
                raise error
            if error is None:
                answers[tasks[task]] = task.result()
            if told is not None:
                found = error if isinstance(error, EndpointError) else task.result()
                go_on = told(tasks[task], found) and go_on
        return go_on

    def _gated(self, question: Question) -> Coroutine[Any, Any, Json]:
        async def one() -> Json:
            async with self._gate:
                return await self._patiently(question)

        return one()

    async def _patiently(self, question: Question) -> Json:
        """Ask, and ask again while what went wrong may pass."""
        for wait in (*self.server.backoff, None):
            try:
                async with asyncio.timeout(self.server.answer_seconds):
                    return await self._once(question)
            except TimeoutError:
                error: EndpointError = self._too_slow()
            except EndpointError as found:
                error = found
            if wait is None or not error.passing:
                raise error
            asked = error.retry_after if isinstance(error, EndpointBusyError) else None
            seconds = wait if asked is None else min(max(wait, asked), LONGEST_WAIT)
            await asyncio.sleep(seconds * (1 + self._chance.random() / 4))
        raise AssertionError("the last try returns or raises")

    async def _once(self, question: Question) -> Json:
        server, place = self.server, self.server.place
        client = self._connected()
        url = httpx.URL(
            server.base_url.removesuffix("/v1") if question.at_root else server.base_url
        )
        path = url.path.rstrip("/") + question.path
        headers = {"Host": url.netloc.decode(), "Accept-Encoding": "identity"}
        if server.key is not None:
            headers["Authorization"] = f"Bearer {server.key}"
        method = "GET" if question.body is None else "POST"
        trouble: Exception | None = None
        for address in await self._addresses(place):
            request = client.build_request(
                method,
                url.copy_with(host=str(address), path=path),
                json=question.body,
                headers=headers,
                extensions={"sni_hostname": place.host},
            )
            try:
                response = await client.send(request, stream=True)
            except httpx.ConnectError as error:
                if "CERTIFICATE" in str(error).upper():
                    raise self._untrusted(error) from error
                trouble = error
                continue
            except httpx.HTTPError as error:
                raise self._lost(error) from error
            try:
                return self._judged(response, await self._read(response, question.most_bytes))
            except httpx.HTTPError as error:
                raise self._lost(error) from error
            finally:
                await response.aclose()
        raise EndpointUnreachableError(
            f"Nothing answers at {place.named} ({trouble or 'no address'}). Check that the server "
            "runs there, the port, and the network between."
        ) from trouble

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            seconds = self.server.answer_seconds
            self._client = httpx.AsyncClient(
                trust_env=False,
                verify=ssl.create_default_context(),  # the machine's own, and SSL_CERT_FILE
                follow_redirects=False,
                timeout=httpx.Timeout(seconds, connect=self.server.connect_seconds),
                limits=httpx.Limits(max_connections=self.server.at_once),
            )
        return self._client

    async def _addresses(self, place: Place) -> list[Address]:
        """Return the addresses of a host, all judged. Errors: refused, unknown name."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise EndpointUnreachableError(
                f"The name {place.host} has no address ({error.strerror or error}). Mend the URL, "
                "or the machine's DNS."
            ) from error
        addresses = [
            ip_address(str(entry[4][0]).partition("%")[0]) for entry in dict.fromkeys(found)
        ]
        for address in addresses:
            problem = refusal(place, address, self.server.allowed)
            if problem is not None:
                raise EndpointRefusedError(problem)
        return addresses

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        """Return the body. Errors: EndpointAnswerError where it is packed or larger than asked."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise EndpointAnswerError(
                f"{self.server.place.named} packs its answers though it was asked not to. Turn "
                "compression off, also in a proxy before it."
            )
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > most:
                raise EndpointAnswerError(
                    f"{self.server.place.named} sent more than the {most:,} bytes such an answer "
                    "may have. It is not what was asked for: check the URL."
                )
        return bytes(body)

    def _judged(self, response: httpx.Response, body: bytes) -> Json:
        status = response.status_code
        if status in {301, 302, 303, 307, 308}:
            target = response.headers.get("location", "elsewhere")[:_SAID]
            raise EndpointRefusedError(
                f"{self.server.place.named} sends on to {target}, which is not followed: register "
                "the address that answers itself."
            )
        try:
            value: Any = json.loads(body)
        except ValueError:
            value = None
        if status != 200:  # noqa: PLR2004 - HTTP
            raise self._failed(response, self._words(value, body))
        if not isinstance(value, dict):
            raise EndpointAnswerError(
                f"{self.server.place.named} answers {response.url.path} with no JSON object. Is "
                "this the base URL of an OpenAI-compatible server, such as https://host:port/v1?"
            )
        return value

    def _words(self, value: Any, body: bytes) -> str:
        """Return what the server says of a failure, without the key, on one line."""
        found: Any = value
        for name in ("error", "message", "detail"):
            found = found.get(name, found) if isinstance(found, dict) else found
        text = found if isinstance(found, str) else body[: 4 * _SAID].decode("utf-8", "replace")
        if self.server.key:
            text = text.replace(self.server.key, "…")
        clean = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(clean.split())[:_SAID]

    def _failed(self, response: httpx.Response, words: str) -> EndpointError:
        """Name an answer that is a failure, with what mends it."""
        status, place, low = response.status_code, self.server.place.named, words.lower()
        said = f" It says: {words}" if words else ""
        if status in {401, 403}:
            how = "refuses the API key" if self.server.key else "wants an API key"
            return EndpointKeyError(f"{place} {how} ({status}). Give a valid one.{said}")
        if any(phrase in low for phrase in _TOO_LONG):
            return EndpointContextError(
                f"A text is longer than {self.server.model} reads at {place}. Set max tokens "
                f"lower, or serve it with a longer context.{said}"
            )
        if status == 404 and "model" in low:  # noqa: PLR2004 - HTTP
            return EndpointModelError(
                f"{place} does not serve {self.server.model}. Give the name it is served "
                f"under.{said}"
            )
        if status in _PASSING:
            error = EndpointBusyError(
                f"{place} answered {status} to every try. Wait until it has less to do, or lower "
                f"how many requests are made at once.{said}"
            )
            after = response.headers.get("retry-after", "")
            error.retry_after = float(after) if after.isdecimal() else None
            return error
        if "logprobs" in low:
            return EndpointLogprobsError(
                f"{place} refuses log-probabilities of a prompt ({status}).{said}"
            )
        return EndpointAnswerError(
            f"{place} answered {status} to {response.url.path}. Check the base URL and what the "
            f"server supports.{said}"
        )

    def _untrusted(self, error: httpx.ConnectError) -> EndpointRefusedError:
        return EndpointRefusedError(
            f"The certificate of {self.server.place.named} is not trusted ({error}). Serve it with "
            "one for this name, or name its authority's file to the workers as SSL_CERT_FILE."
        )

    def _too_slow(self) -> EndpointTimeoutError:
        return EndpointTimeoutError(
            f"{self.server.place.named} gave no answer within {self.server.answer_seconds:g} s. "
            "Wait until it has less to do, or lower how many requests are made at once."
        )

    def _lost(self, error: httpx.HTTPError) -> EndpointError:
        if isinstance(error, httpx.TimeoutException):
            if isinstance(error, httpx.ConnectTimeout):
                return EndpointTimeoutError(
                    f"{self.server.place.named} took no connection within "
                    f"{self.server.connect_seconds:g} s. Check the address and the firewall."
                )
            return self._too_slow()
        return EndpointUnreachableError(
            f"The connection to {self.server.place.named} was lost ({type(error).__name__}). Check "
            "that the server still runs."
        )
