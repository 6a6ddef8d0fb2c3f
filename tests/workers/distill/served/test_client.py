"""Asking a server: retries, bounds, a stop within seconds, named failures, and where it may go."""

import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import MODEL, Faults, Served, serving
from tests.workers.distill.served.conftest import QUICK, server_of
from workers.distill.callbacks import Stopped
from workers.distill.errors import (
    EndpointAnswerError,
    EndpointBusyError,
    EndpointError,
    EndpointKeyError,
    EndpointRefusedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
)
from workers.distill.served import client
from workers.distill.served.client import Endpoint, Question, Server, read_key

MODELS = Question("/models")


def ask(server: Server, question: Question = MODELS) -> dict[str, Any]:
    with Endpoint(server) as endpoint:
        return endpoint.ask(question)


@pytest.mark.parametrize("faults", [Faults(busy=2), Faults(broken=2), Faults(cut=2)])
def test_what_passes_is_asked_again(served: Served, faults: Faults) -> None:
    served.faults = faults
    assert ask(server_of(served))["data"][0]["id"] == MODEL
    assert len(served.asked) == 3


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (Faults(busy=9), EndpointBusyError, "answered 429 to every try"),
        (Faults(broken=9), EndpointBusyError, "answered 500.*boom"),
        (Faults(cut=9), EndpointUnreachableError, "was lost"),
        (Faults(html=True), EndpointAnswerError, "no JSON object"),
        (Faults(huge=True), EndpointAnswerError, "more than the 1,048,576 bytes"),
        (Faults(redirect="http://169.254.169.254/"), EndpointRefusedError, "not followed"),
    ],
)
def test_failures_are_named_with_the_mend(
    served: Served, faults: Faults, error: type[EndpointError], words: str
) -> None:
    served.faults = faults
    with pytest.raises(error, match=words):
        ask(server_of(served))
    assert len(served.asked) == (3 if error.passing else 1)


def test_an_unknown_operation_is_named(served: Served) -> None:
    with pytest.raises(EndpointAnswerError, match="404 to /v1/nothing"):
        ask(server_of(served), Question("/nothing"))


def test_the_key_is_sent_and_never_told(served: Served) -> None:
    served.key = "sk-canary"
    with pytest.raises(EndpointKeyError, match="wants an API key"):
        ask(server_of(served))
    with pytest.raises(EndpointKeyError, match="refuses the API key") as refused:
        ask(server_of(served, key="sk-wrong"))
    assert "sk-wrong" not in str(refused.value)
    assert ask(server_of(served, key="sk-canary"))
    assert served.keys == [None, "Bearer sk-wrong", "Bearer sk-canary"]
    assert "sk-canary" not in repr(server_of(served, key="sk-canary"))


def test_a_kept_key_goes_to_its_own_host_only(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "endpoint-1"
    server = server_of(served)
    assert read_key(file, server) is None
    file.write_text(f"{server.place.named}\nsk-1")
    assert read_key(file, server) == "sk-1"
    with pytest.raises(EndpointRefusedError, match="belongs to"):
        read_key(file, Server("http://elsewhere.example/v1", MODEL))


def test_no_answer_in_time_is_named(served: Served) -> None:
    served.faults.hang = 1.0
    with pytest.raises(EndpointTimeoutError, match=r"no answer within 0\.1 s"):
        ask(server_of(served, answer_seconds=0.1, backoff=()))


def test_nothing_there_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}/v1", MODEL, (f"127.0.0.1:{port}",), backoff=())
    with pytest.raises(EndpointUnreachableError, match="Nothing answers at 127"):
        ask(server)


def test_a_stop_gives_up_what_hangs_within_a_second(served: Served) -> None:
    served.faults.hang = 30.0
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with Endpoint(server_of(served, at_once=4), stop.is_set) as endpoint, pytest.raises(Stopped):
        endpoint.ask_all([MODELS] * 9)
    assert time.monotonic() - started < 10, "a busy machine may be slow to tell"
    assert served.most_at_once == 4, "as many as may be under way, and no more"


def test_a_stop_does_not_wait_for_the_next_try(served: Served) -> None:
    served.faults.busy = 99
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    server = server_of(served, backoff=(60.0,))
    with Endpoint(server, stop.is_set) as endpoint, pytest.raises(Stopped):
        endpoint.ask(MODELS)
    assert time.monotonic() - started < 10, "a busy machine may be slow to tell"


def test_answers_come_in_the_questions_order(served: Served) -> None:
    body = [{"model": MODEL, "messages": [{"role": "user", "content": f"n{i}"}]} for i in range(9)]
    with Endpoint(server_of(served, at_once=3)) as endpoint:
        found = endpoint.ask_all([Question("/chat/completions", b) for b in body])
    said = [answer["choices"][0]["message"]["content"] for answer in found]
    assert said == [f'{{"echo": "n{i}"}}' for i in range(9)]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]"],
)
def test_loopback_is_not_asked_in_any_spelling(served: Served, host: str) -> None:
    port = served.address.rpartition(":")[2]
    with pytest.raises(EndpointRefusedError, match="is not asked"):
        ask(Server(f"http://{host}:{port}/v1", MODEL, backoff=QUICK))
    assert served.asked == []


def test_a_name_is_judged_by_every_address_it_has_at_the_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was public when it was saved and is loopback now leads nowhere."""
    port = int(served.address.rpartition(":")[2])
    real = socket.getaddrinfo

    def rebound(host: str, *rest: Any, **more: Any) -> Any:
        where = "127.0.0.1" if host == "rebinds.example" else host
        found = real(where, *rest, **more)
        public = (*found[0][:4], ("93.184.215.14", port))
        return [public, *found] if host == "rebinds.example" else found

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    with pytest.raises(EndpointRefusedError, match=r"rebinds\.example:\d+ is at 127\.0\.0\.1"):
        ask(Server(f"http://rebinds.example:{port}/v1", MODEL, backoff=QUICK))
    assert served.asked == []


def test_the_connection_goes_to_the_address_that_was_judged(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look-up would say otherwise; there is none."""
    port = int(served.address.rpartition(":")[2])
    looked: list[str] = []
    real = socket.getaddrinfo

    def once(host: str, *rest: Any, **more: Any) -> Any:
        if host == "named.example":
            looked.append(host)
            return real("127.0.0.1", *rest, **more)
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    server = Server(f"http://named.example:{port}/v1", MODEL, ("named.example",), backoff=QUICK)
    assert ask(server)["data"]
    assert looked == ["named.example"]


def test_a_proxy_of_the_environment_is_not_used(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Served(served.model, served.tokenizer)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        assert ask(server_of(served))
        assert proxy.asked == []


def test_waiting_is_bounded_also_where_the_server_asks_for_more() -> None:
    assert client.LONGEST_WAIT == 60
    assert sum(client.BACKOFF) * 1.25 < 60


@pytest.fixture
def named_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A certificate for named.example that this process trusts, and its key; where it leads."""
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=named.example", "-addext", "subjectAltName=DNS:named.example"]
    made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    command = ["openssl", "req", *made, "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    real = socket.getaddrinfo

    def loopback(host: str, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".example") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)
    return files


def test_over_tls_the_certificate_is_the_names_though_the_address_is_dialled(
    served: Served, named_example: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Served(served.model, served.tokenizer), tls=named_example) as secure:
        port = secure.address.rpartition(":")[2]

        def server(host: str) -> Server:
            return Server(f"https://{host}:{port}/v1", MODEL, (host,), backoff=QUICK)

        with pytest.raises(EndpointRefusedError, match=r"is not trusted.*SSL_CERT_FILE"):
            ask(server("named.example"))
        monkeypatch.setenv("SSL_CERT_FILE", str(named_example[0]))
        assert ask(server("named.example"))["data"]
        with pytest.raises(EndpointRefusedError, match="is not trusted"):
            ask(server("other.example"))
        assert len(secure.asked) == 1
