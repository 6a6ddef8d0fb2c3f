"""Processes that share each step: the numbers of one, and no hang where one is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.rank_task import RankInputs, RankTask, trained
from tests.workers.distill.test_trainer import Recorder
from workers.distill.checkpointing import MODEL, snapshot_folder, snapshot_folders
from workers.distill.checkpoints import load_weights
from workers.distill.errors import RankLostError
from workers.distill.ranks import ALONE
from workers.distill.trainer import TrainResult
from workers.job.ranks import lost_words
from workers.job.task import BodyContext
from workers.tasks import rank


def context(workdir: Path, callbacks: Any) -> BodyContext:
    workdir.mkdir(exist_ok=True)
    return BodyContext(workdir, workdir, (), callbacks)


def alike(one: dict[str, float], other: dict[str, float]) -> None:
    """Compare the points of a step but for its speed."""
    assert one.keys() == other.keys()
    for name in one.keys() - {"perf/tokens_per_second"}:
        assert one[name] == pytest.approx(other[name], rel=2e-6, abs=5e-8), name


def test_two_ranks_have_losses_and_weights_of_one_process_and_one_goes_on(tmp_path: Path) -> None:
    """Seven conversations packed into rows: no even share; and the other rank has less memory."""
    alone, shared, after = Recorder(), Recorder(stop_after=4), Recorder()
    one = RankInputs(ranks=1, packing=True)
    whole, model = trained(one, context(tmp_path / "one", alone), ALONE)
    # The whole one keeps only its last snapshots.
    trained(one, context(tmp_path / "four", Recorder(stop_after=4)), ALONE)
    two = RankInputs(packing=True, small=True)
    half, _ = RankTask().run(two, context(tmp_path / "two", shared))
    assert isinstance(half, TrainResult)
    assert (half.steps, half.ending) == (4, "stopped"), "the stop of one is that of all"
    assert [f.name for f in snapshot_folders(tmp_path / "two" / "snapshots")] == [
        "step-00000004",
        "step-00000002",
    ]
    repeated = "Step 1: memory ran out, so it is repeated in micro-batches of 1."
    assert any(repeated in text for text in shared.logs), "what one lacks, all lack"
    for step in range(1, 5):
        alike(shared.points[step], alone.points[step])
    for step in (2, 4):
        states = []
        for which in ("four", "two"):
            load_weights(model, snapshot_folder(tmp_path / which / "snapshots", step) / MODEL)
            states.append({k: v.clone() for k, v in model.state_dict().items()})
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=2e-6)
    # Another number of ranks goes on from what two have left.
    resumed, _ = trained(one, context(tmp_path / "two", after), ALONE)
    assert after.resumed_from == [4]
    assert (resumed.steps, resumed.best_step) == (6, whole.best_step)
    assert resumed.tokens == whole.tokens
    for step in (5, 6):
        alike(after.points[step], alone.points[step])


def test_a_lost_rank_ends_the_training_by_name_and_keeps_the_snapshot(tmp_path: Path) -> None:
    words = r"Process 2 of 2 was ended by signal 9.*Try again: it goes on from the last snapshot"
    with pytest.raises(RankLostError, match=words):
        RankTask().run(RankInputs(dies=True), context(tmp_path, Recorder()))
    assert snapshot_folders(tmp_path / "snapshots")[0].name == "step-00000002"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"message": "The cache is gone."}', "Process 3 of 4: The cache is gone."),
        (b"", "Process 3 of 4 ended with exit code 1, and the training with it."),
        (b"Traceback", "Process 3 of 4 ended with exit code 1, and the training with it."),
    ],
)
def test_what_a_lost_rank_said_is_told(said: bytes, words: str) -> None:
    assert lost_words(3, 4, 1, said).startswith(words)


def test_kinds_that_are_not_shared_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert rank.main("evaluate") == 2
    assert capsys.readouterr().err == "Jobs of kind evaluate are not shared.\n"
