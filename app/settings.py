"""Every setting, read once from the environment; nothing else reads it."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Variables are STILLHOUSE_<NAME>; the two URLs also under their customary names.

    Without URLs the embedded servers of `home` are used: `stillhouse up` starts them and writes
    `home/servers.json`, which `app.local` turns into URLs.
    """

    model_config = SettingsConfigDict(env_prefix="STILLHOUSE_", extra="ignore")

    home: Path = Path(".stillhouse")
    database_url: str | None = Field(
        default=None, validation_alias=AliasChoices("STILLHOUSE_DATABASE_URL", "DATABASE_URL")
    )
    redis_url: str | None = Field(
        default=None, validation_alias=AliasChoices("STILLHOUSE_REDIS_URL", "REDIS_URL")
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=1, le=65535)
    url: str | None = None
    """Where the command line finds the API; else the address that `up` left in the home."""
    token: SecretStr | None = None
    """The API token of the command line; else the home's own."""
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    insecure_http: bool = False
    """Allow a bind beyond loopback without TLS; cookies then lose their __Host- prefix."""
    behind_tls: bool = False
    """A proxy in front ends TLS: cookies are Secure and carry the __Host- prefix."""
    log_format: Literal["json", "console"] = "json"
    lock_dir: Path = Path("/tmp/stillhouse-locks")  # noqa: S108 - see workers.job.gpu
    """Locks of this host's graphics cards: one folder for all homes and containers of a host."""
    cuda_visible_devices: str | None = Field(default=None, validation_alias="CUDA_VISIBLE_DEVICES")
    endpoint_hosts: tuple[str, ...] = ()
    """Servers of checkpoints at addresses that are not public: host[:port] or network[:port]."""
    gpu_workers: int = Field(default=1, ge=0)
    cpu_workers: int = Field(default=1, ge=0)

    session_idle_hours: float = 2
    session_absolute_hours: float = 12
    max_body_bytes: int = 2 * 1024 * 1024
    max_upload_bytes: int = 64 * 1024**3
    upload_keep_days: float = Field(default=7, gt=0)
    """How long an upload that was cut off waits for its next byte before it is removed."""

    lease_seconds: float = 30
    heartbeat_seconds: float = 5
    reap_seconds: float = 5
    max_attempts: int = 3
    backoff_seconds: tuple[float, ...] = (5, 20, 60)
    keep_seconds: float = 30
    """How long "stop and keep" may take to save."""
    discard_seconds: float = 10

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def work(self) -> Path:
        """Folders of running attempts, named by their fence."""
        return self.home / "work"

    @property
    def token_file(self) -> Path:
        """The local API token, mode 0600: read by the command line on the machine of the home."""
        return self.home / "token"

    @property
    def own_address(self) -> str:
        """What a program on this machine opens; a bind to every address answers on loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"

    def require_database_url(self) -> str:
        if self.database_url is None:
            raise MissingServerError("DATABASE_URL")
        return self.database_url

    def require_redis_url(self) -> str:
        if self.redis_url is None:
            raise MissingServerError("REDIS_URL")
        return self.redis_url


class MissingServerError(RuntimeError):
    """No server is named and the embedded ones are not running."""

    def __init__(self, variable: str) -> None:
        super().__init__(
            f"{variable} is not set and no embedded server runs on this home: "
            f"start `stillhouse up`, or set {variable}"
        )
