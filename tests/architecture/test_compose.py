"""Dockerfile and docker-compose.yml against the settings, the command line and the workers."""

import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli.root import app as cli
from app.local.programs import ROOT, worker_command
from app.settings import Settings
from app.specs.jobs import Queue
from tests.support.compose import (
    COMPOSE,
    OURS,
    REFERENCE,
    SERVICES,
    STAGES,
    example,
    filled,
    setting_variables,
    started_as,
)

RUNTIME = {
    "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PIP_NO_CACHE_DIR",
    "PIP_DISABLE_PIP_VERSION_CHECK", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
}  # fmt: skip
THEIRS = {
    "postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"},
    "valkey": {"VALKEY_PASSWORD", "REDISCLI_AUTH"},
}


def test_dockerfile_copies_what_exists_and_ends_without_root() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for stage in STAGES.values():
        for copy in stage.all("COPY"):
            if copy.startswith("--from="):
                assert copy.split()[0].removeprefix("--from=") in STAGES
                continue
            for source in copy.split()[:-1]:
                assert (ROOT / source).exists(), f"COPY {source}"
                assert f"!{source}" in ignored, f"{source} is hidden by .dockerignore"
    for name in ("web", "worker"):
        assert STAGES[name].last("USER") == "stillhouse"
        assert STAGES[name].lines.index(("USER", "stillhouse")) > max(
            i for i, (word, _) in enumerate(STAGES[name].lines) if word in ("RUN", "COPY")
        )
    assert STAGES["web"].last("EXPOSE") == str(Settings.model_fields["port"].default)


def test_dockerfile_sets_only_variables_that_exist() -> None:
    for stage in STAGES.values():
        names = {pair.partition("=")[0] for env in stage.all("ENV") for pair in shlex.split(env)}
        assert names <= RUNTIME | setting_variables()


def test_the_images_hold_what_the_pages_and_migrations_need() -> None:
    held = {source for copy in STAGES["web"].all("COPY") for source in copy.split()[:-1]}
    assert {"app", "templates", "static", "migrations", "alembic.ini"} <= held
    assert "/opt/stillhouse/static/vendor" in held
    assert "app.web.vendor" in STAGES["vendored"].last("RUN")


# --- docker-compose.yml -------------------------------------------------------------------


def test_services_and_dependencies_are_known() -> None:
    assert set(SERVICES) == {
        "postgres", "valkey", "migrate", "web", "dispatcher",
        "worker-cpu", "worker-gpu", "worker-no-gpu",
    }  # fmt: skip
    for name, service in SERVICES.items():
        for needed in service.get("depends_on", {}):
            assert needed in SERVICES, name
        assert "healthcheck" in service or name == "migrate", name
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_every_variable_is_a_setting_and_every_reference_is_explained() -> None:
    for name, service in SERVICES.items():
        known = THEIRS[name] if name in THEIRS else setting_variables()
        assert set(service["environment"]) <= known, name
    raw = (ROOT / "docker-compose.yml").read_text()
    names = {match[1] for match in REFERENCE.finditer(raw)}
    assert names | {"COMPOSE_PROFILES"} == set(example())
    profiles = {p for service in SERVICES.values() for p in service.get("profiles", ())}
    assert example()["COMPOSE_PROFILES"] in profiles
    arguments = {name for service in OURS.values() for name in service["build"].get("args", {})}
    assert arguments <= {a.partition("=")[0] for s in STAGES.values() for a in s.all("ARG")}


def test_no_secret_has_a_default() -> None:
    with pytest.raises(AssertionError, match="POSTGRES_PASSWORD is required"):
        filled(SERVICES["web"]["environment"]["STILLHOUSE_DATABASE_URL"], example())
    with pytest.raises(AssertionError, match="VALKEY_PASSWORD is required"):
        filled(SERVICES["web"]["environment"]["STILLHOUSE_REDIS_URL"], example())


def test_the_settings_of_every_service_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**example(), "POSTGRES_PASSWORD": "pw1", "VALKEY_PASSWORD": "pw2"}
    for name, service in OURS.items():
        with monkeypatch.context() as patched:
            for variable, value in service["environment"].items():
                patched.setenv(variable, filled(str(value), given))
            settings = Settings()
        assert (
            settings.database_url == "postgresql+psycopg://stillhouse:pw1@postgres:5432/stillhouse"
        )
        assert settings.redis_url == "redis://:pw2@valkey:6379/0"
        assert f"{settings.home}" in {v.partition(":")[2] for v in service["volumes"]}
        if name == "web":
            inside = SERVICES["web"]["ports"][0].rpartition(":")[2]
            assert (settings.host, str(settings.port)) == ("0.0.0.0", inside)  # noqa: S104
            assert "127.0.0.1" in settings.allowed_hosts, "the health check asks there"
            assert f":{settings.port}/readyz" in " ".join(service["healthcheck"]["test"])


def test_commands_are_those_of_the_command_line_and_the_workers() -> None:
    commands = set(get_command(cli).commands)  # type: ignore[attr-defined] # a group
    queues = set()
    for name, service in OURS.items():
        whole = started_as(service)
        if service["build"]["target"] == "web":
            assert whole[:3] == ["python", "-m", "app.cli"], name
            assert len(whole) == 4, name
            assert whole[3] in commands, name
        else:
            queue = whole[whole.index("-Q") + 1]
            queues.add(queue)
            assert whole[1:] == worker_command(queue)[1:], name
            assert service["healthcheck"]["test"][-1] == queue
            seconds = int(service["stop_grace_period"].removesuffix("s"))
            assert seconds > Settings.model_fields["keep_seconds"].default
    assert queues == {q.value for q in Queue}


def test_valkey_gets_its_password_from_a_file(tmp_path: Path) -> None:
    fake = tmp_path / "valkey-server"
    fake.write_text('#!/bin/sh\necho "$0 $*"; cat "$1"\n')
    fake.chmod(0o755)
    program, flag, script = SERVICES["valkey"]["command"]
    script = filled(script, {}).replace("/tmp/", f"{tmp_path}/")  # noqa: S108 - the container's
    done = subprocess.run(
        [program, flag, script], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/bin:/usr/bin", "VALKEY_PASSWORD": "s3cret"},
    )  # fmt: skip
    called, *config = done.stdout.splitlines()
    assert "s3cret" not in called
    assert config[0] == "requirepass s3cret"
    assert "appendonly yes" in config
