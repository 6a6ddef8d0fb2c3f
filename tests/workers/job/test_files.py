"""A job's process may open as many files as its machine allows it."""

import sys
from pathlib import Path

from app.specs.events import ResultEvent
from workers.job.process import Child

SCRIPT = """
import resource, sys, tempfile
from types import SimpleNamespace
from app.specs.base import Spec
from workers.job.child import run_child

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))

def run(inputs, context):
    held = [tempfile.TemporaryFile() for _ in range(200)]
    return {"opened": len(held)}

sys.exit(run_child(SimpleNamespace(inputs=Spec, run=run)))
"""


def test_a_body_opens_more_files_than_its_process_began_with(tmp_path: Path) -> None:
    request = {"inputs": {}, "workdir": str(tmp_path), "blobs": str(tmp_path), "snapshots": []}
    child = Child([sys.executable, "-c", SCRIPT], request, root=Path.cwd())
    try:
        events = list(iter(lambda: child.events.get(timeout=60), None))
        assert child.process.wait(timeout=60) == 0, "\n".join(child.stderr)
    finally:
        child.close()
    [result] = [event for event in events if isinstance(event, ResultEvent)]
    assert result.payload == {"opened": 200}
