"""What becomes of a job's subject when the job fails or is cancelled, whoever ends it.

A worker, the reaper, a cancel in the queue and a failed dependency all end jobs; each goes through
`service.end`, so a checkpoint or upload never stays "registering" without a job.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from app.specs.jobs import JobKind

Unfinished = Callable[[Session, dict[str, Any], str], None]
"""(session, the job's spec, a sentence): mark the subject, unless the result is there already."""
_REGISTERED: dict[JobKind, Unfinished] = {}


def when_unfinished(*kinds: JobKind) -> Callable[[Unfinished], Unfinished]:
    """Register a domain's function for its kinds of job. `app.metadata` imports them all."""

    def register(function: Unfinished) -> Unfinished:
        _REGISTERED.update(dict.fromkeys(kinds, function))
        return function

    return register


def unfinished(session: Session, kind: str, spec: dict[str, Any], message: str) -> None:
    """Tell the job's domain, if it wants to know."""
    function = _REGISTERED.get(JobKind(kind))
    if function is not None:
        function(session, spec, message)
