"""A monitor's calls, in whatever format: they teach nothing, so their answers are no targets."""

from dataclasses import replace

from workers.ingest.values import LoggedCall

FLAG = "health_check"
_PINGS = {
    "ping", "health", "health check", "healthcheck", "health-check", "heartbeat", "liveness probe",
    "are you alive", "are you there",
}  # fmt: skip


def marked(call: LoggedCall) -> LoggedCall:
    """Return the call, flagged where its only question is a monitor's."""
    said = [m.content.strip().strip(".?! ").lower() for m in call.messages if m.role == "user"]
    if len(said) != 1 or said[0] not in _PINGS:
        return call
    messages = tuple(
        m.model_copy(update={"is_target": False, "flags": _with(m.flags)}) if m.is_target else m
        for m in call.messages
    )
    return replace(call, messages=messages, flags=_with(call.flags))


def _with(flags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*flags, FLAG}))
