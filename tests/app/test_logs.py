"""Logs carry tracebacks in both formats, and never local variables."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from app.logs import configure_logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    config, handlers, level = (
        structlog.get_config(),
        logging.root.handlers[:],
        logging.root.level,
    )
    yield
    structlog.configure(**config)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def _fail(password: str) -> None:
    raise ValueError(f"a password of {len(password)} characters")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_traceback_without_locals(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(log_format)  # type: ignore[arg-type] # parametrised over the two words
    try:
        _fail("hunter2hunter2")
    except ValueError:
        structlog.get_logger("probe").exception("unhandled", request_id="r1")
    text = capsys.readouterr().err
    assert "a password of 14 characters" in text
    assert "_fail" in text
    assert "hunter2hunter2" not in text.replace('_fail("hunter2hunter2")', "").replace(
        '_fail(\\"hunter2hunter2\\")', ""
    )
    if log_format == "json":
        assert json.loads(text)["request_id"] == "r1"
