"""The demo's path with almost nothing to learn: real jobs, one comparison, and a second run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from app.accounts import service as accounts
from app.cli.connect import InProcess
from app.client.rest import Api
from app.db.session import make_engine
from app.demo import steps
from app.demo.setting import QUICK, DemoSetting
from app.demo.steps import STEPS, Demo
from app.main import create_app
from app.settings import Settings
from tests.support.workers import working
from tests.workers.distill.tiny import llama, tokenizer
from workers.distill.checkpoints import save_checkpoint


def shorter(training: Any, **schedule: Any) -> Any:
    return training.model_copy(update={"schedule": training.schedule.model_copy(update=schedule)})


def small() -> DemoSetting:
    """Return the quick setting with a tenth of its data: enough for answers that end."""
    sizes = {"tune": 40, "train": 40, "validation": 4, "test": 12, "labelled": 8}
    return QUICK.model_copy(
        update={
            "tickets": QUICK.tickets.model_copy(update=sizes),
            "tuning": shorter(QUICK.tuning, steps=60, learning_rate=1e-2),
            "runs": {
                role: shorter(training, steps=3, batch_size=4)
                for role, training in QUICK.runs.items()
            },
        }
    )


class Notes:
    """A report that keeps what it was told."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.notes: list[str] = []
        self.moves = 0

    def begin(self, place: int, count: int, title: str) -> None:
        assert (place, count) == (len(self.titles) + 1, len(STEPS))
        self.titles.append(title)

    def moved(self, found: Mapping[str, Any]) -> None:
        assert found["state"]
        self.moves += 1

    def ended(self, note: str) -> None:
        self.notes.append(note)


@pytest.fixture
def api(settings: Settings, own_database: str) -> Iterator[Api]:
    own = settings.model_copy(update={"database_url": own_database})
    engine = make_engine(own_database, pool_size=10)
    app = create_app(own, engine=engine)
    parts = app.state.services
    with parts.sessions.begin() as session:
        token = accounts.ensure_local_token(session, own.token_file)
    headers = {"Authorization": f"Bearer {token}"}
    with (
        start_blocking_portal() as portal,
        httpx.Client(
            transport=InProcess(app, portal), base_url="http://127.0.0.1", headers=headers
        ) as http,
        working(parts.sessions, own),
    ):
        yield Api(http, patience=0)
    engine.dispose()


@pytest.mark.slow
def test_the_demo_ends_in_a_comparison_and_a_second_run_reuses_it(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(llama(), tokenizer(), tmp_path / "base")
    monkeypatch.setattr(steps, "base_source", lambda *_: tmp_path / "base")
    first = Notes()
    setting = small()
    found = Demo(api, setting, tmp_path, first).carry_out()
    assert len(first.notes) == len(STEPS)
    assert first.moves
    assert not any("there already" in note for note in first.notes[:8])
    roles = [row["role"] for row in found["rows"]]
    assert roles == ["teacher", "undistilled", "distilled", "sequence_level", "labels_only"]
    assert {row["cells"]["exact_match"]["n"] for row in found["rows"]} == {12}
    funnel = next(
        v["funnel"]
        for v in api.get("/projects/tickets-to-json-quick/versions")
        if v["dataset_name"] == "traffic"
    )
    assert funnel["references"] <= 8 + 4 + 12
    assert funnel["quarantined"], "the log has dirt"

    jobs = len(api.get("/jobs", {"limit": 500}))
    again = Notes()
    assert Demo(api, setting, tmp_path, again).carry_out() == found
    assert all("there already" in note for note in again.notes), again.notes
    assert again.moves == 0
    assert len(api.get("/jobs", {"limit": 500})) == jobs
