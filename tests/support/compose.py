"""docker-compose.yml and the Dockerfile as values, read as their tools read them."""

import json
import re
from typing import Any

import yaml
from pydantic import AliasChoices

from app.local.programs import ROOT
from app.settings import Settings

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
REFERENCE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(:?[-?][^}]*)?\}")


def setting_variables() -> set[str]:
    """Return every environment variable that the settings read."""
    prefix = Settings.model_config.get("env_prefix", "")
    found = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices):
            found.update(map(str, alias.choices))
        else:
            found.add(alias if isinstance(alias, str) else f"{prefix}{name}".upper())
    return found


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def filled(value: str, given: dict[str, str]) -> str:
    """Interpolate as compose does; an empty required variable is an error."""

    def replace(match: re.Match[str]) -> str:
        name, rule = match[1], match[2] or ""
        if given.get(name):
            return given[name]
        assert not rule.startswith(":?"), f"{name} is required"
        return rule.removeprefix(":-")

    return REFERENCE.sub(replace, value).replace("$$", "$")


class Stage:
    """One FROM of the Dockerfile and its instructions, with those of the stage it builds on."""

    def __init__(self, name: str, parent: "Stage | None") -> None:
        self.name = name
        self.lines: list[tuple[str, str]] = list(parent.lines) if parent else []

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.lines if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]


def dockerfile() -> dict[str, Stage]:
    joined = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in joined.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name] = Stage(name, stages.get(base))
        elif current is not None:
            current.lines.append((word, rest.strip()))
    return stages


STAGES = dockerfile()


def started_as(service: dict[str, Any]) -> list[str]:
    """Return the whole command a container of this service runs."""
    stage = STAGES[service["build"]["target"]]
    command = service.get("command") or json.loads(stage.last("CMD"))
    return [*json.loads(stage.last("ENTRYPOINT")), *command]
