"""What a run reads, takes and lasts, by values worked out by hand."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import Conflict
from app.evaluations import service as evaluations
from app.jobs import lease
from app.jobs.models import Job, JobSnapshot
from app.runs import service
from app.runs.disk import expected_bytes
from app.runs.schemas import PartOut
from app.runs.subject import capture_of, epochs, trained_on
from app.runs.times import START, spread
from app.specs.jobs import JobKind, JobState, Queue
from app.specs.teacher import CaptureProfile
from app.teacher_cache.models import CacheShard
from tests.app.runs.conftest import Bench
from tests.support import made_rows


def test_a_range_goes_from_the_fastest_to_the_slowest_past_job() -> None:
    found = spread(1200, [10, 20, 40])
    assert (found.low, found.middle, found.high) == (30, 60, 120)
    one = spread(1200, [20])  # widened by a quarter: one job tells little
    assert (one.low, one.middle, one.high) == (48, 60, 75)


def test_tokens_and_disk_follow_from_the_last_capture(bench: Bench) -> None:
    bench.captured(missing_entries=10, missing_rows=290)
    bench.session.add(
        CacheShard(space=bench.space(), sha256="s", blob="b", bytes=4000, rows=100, fence=1)
    )
    bench.session.flush()
    found = bench.look(bench.spec(schedule={"steps": 100, "batch_size": 8}))
    # 100 × 8 conversations of 29 rows, so 30 tokens.
    assert found.tokens == 24_000
    assert found.epochs == pytest.approx(800 / 60)
    assert found.cache is not None
    assert (found.cache.conversations, found.cache.cached, found.cache.missing_tokens) == (
        70,
        60,
        290,
    )
    # 40 bytes a row as the space's shards have, and the student's own weights once more.
    assert found.disk["cache"] == 290 * 40
    assert found.disk_bytes == 290 * 40 + 4_800_000
    # Three snapshots of weights and two moments in float32.
    assert found.disk["snapshots"] == 3 * 3 * 4 * 1_200_000


def test_a_run_that_does_not_fit_the_disk_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10**12
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("app.runs.advice.shutil.disk_usage", usage)
    found = bench.look(bench.spec())
    assert found.blocked is None
    # Cache and checkpoint stay, the snapshots are there while it trains.
    assert found.disk_peak_bytes == found.disk_bytes + 3 * 3 * 4 * 1_200_000
    assert bench.settings.blobs.is_relative_to(asked[0]), "the disk of the blobs"
    free = found.disk_peak_bytes
    assert bench.look(bench.spec()).blocked is None
    free -= 1
    refused = str(bench.look(bench.spec()).blocked)
    assert "of disk while it trains" in refused
    assert "Make room there, or use a smaller student." in refused
    start = partial(evaluations.start_run, bench.session, bench.project, bench.spec(), owner="ada")
    with pytest.raises(Conflict, match="of disk while it trains"):
        start(key="k", settings=bench.settings)
    free += 1
    run = start(key="k", settings=bench.settings)
    free = 0
    assert start(key="k", settings=bench.settings).id == run.id, "it has started already"


CHECKPOINT, SNAPSHOT = 4_800_000, 3 * 4 * 1_200_000


def start(bench: Bench, name: str, **training: Any) -> dict[str, Job]:
    """Start a run and return its jobs by role."""
    spec = bench.spec(**training).model_copy(update={"name": name})
    run = service.start(bench.session, bench.project, spec, owner="ada")[0]
    view = service.get(bench.session, bench.project, run.number)
    return {phase.role: phase.job for phase in view.phases}


def before(bench: Bench) -> tuple[int, int]:
    found = bench.look(bench.spec())
    return found.disk_others, found.disk_others_bytes


def test_runs_that_wait_count_with_what_they_will_write(bench: Bench) -> None:
    assert before(bench) == (0, 0)
    start(bench, "first")
    # Its cache is the one this run needs, and its snapshots go before this one's are written.
    assert before(bench) == (1, CHECKPOINT)
    other = start(bench, "other", render={"max_tokens": 64})
    own = bench.look(bench.spec(render={"max_tokens": 64})).disk["cache"]
    assert own > 0
    assert before(bench) == (2, 2 * CHECKPOINT + own)
    made_rows.bring_to(bench.session, other["precompute"].id, JobState.RUNNING)
    other["precompute"].progress = {"done": 30, "total": 40, "unit": "tokens"}
    assert before(bench) == (2, 2 * CHECKPOINT + round(own / 4))
    made_rows.bring_to(bench.session, other["precompute"].id, JobState.SUCCEEDED)
    assert before(bench) == (2, 2 * CHECKPOINT)
    made_rows.bring_to(bench.session, other["train"].id, JobState.SUCCEEDED)
    assert before(bench) == (1, CHECKPOINT)


def test_as_many_trainings_have_snapshots_at_once_as_workers_do_them(bench: Bench) -> None:
    first, _ = start(bench, "first"), start(bench, "second")
    for name in ("one", "two"):
        lease.seen(bench.session, name, Queue.GPU, host="h", job_id=None)
    assert before(bench) == (2, 2 * CHECKPOINT + 3 * SNAPSHOT)
    lease.seen(bench.session, "three", Queue.GPU, host="h", job_id=None)
    lease.seen(bench.session, "importer", Queue.CPU, host="h", job_id=None)
    assert before(bench) == (2, 2 * CHECKPOINT + 6 * SNAPSHOT)
    # What a training has written is on the disk already.
    bench.session.add(
        JobSnapshot(job_id=first["train"].id, fence=1, step=1, folder="f", manifest_sha256="s")
    )
    assert before(bench) == (2, 2 * CHECKPOINT + 5 * SNAPSHOT)


def test_a_run_that_fits_alone_but_not_after_the_others_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(bench, "first")
    peak = bench.look(bench.spec()).disk_peak_bytes
    free = peak + CHECKPOINT
    monkeypatch.setattr("app.runs.advice.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert bench.look(bench.spec()).blocked is None
    free -= 1
    refused = str(bench.look(bench.spec()).blocked)
    assert "of disk while it trains, the run before it up to 4.6 MiB more" in refused
    assert "wait until others have ended" in refused
    with pytest.raises(Conflict, match="the run before it"):
        evaluations.start_run(
            bench.session, bench.project, bench.spec(), owner="ada", settings=bench.settings
        )


def test_evaluations_of_the_tables_other_rows_are_counted_until_they_are_asked_for(
    bench: Bench,
) -> None:
    bench.past(
        JobKind.EVALUATE,
        {"checkpoint_id": bench.student.id},
        {"report": {"conversations": 30, "seconds": 60}},
        took=62,
    )

    def look() -> list[PartOut]:
        found = evaluations.estimate(bench.session, bench.project, bench.spec(), bench.settings)
        return [part for part in found.parts if part.phase == "evaluate"]

    own, others = look()
    assert (own.of, others.of) == ([], ["teacher", "undistilled"])
    assert own.seconds is not None
    assert others.seconds is not None
    # The student as long as the run's own, the teacher with eight times the compute: 60 × 9
    # seconds, and two jobs that start.
    assert own.seconds.middle == near(60 + 2)
    assert others.seconds.middle == near(60 * 9 + 2 * 2)
    assert "as teacher" in others.basis
    evaluations.start_run(bench.session, bench.project, bench.spec(), owner="ada")
    assert [part.of for part in look()] == [[]]


def test_without_a_capture_tokens_come_from_the_texts_and_say_so(bench: Bench) -> None:
    found = bench.look(bench.spec(schedule={"steps": 10, "batch_size": 1}))
    # "Where is my parcel 0" to "… 19": 20.5 characters on average, the answer 17; two messages.
    assert found.tokens == pytest.approx(10 * ((20.5 + 17) / 4 + 2 * 5), abs=1)
    assert "four characters a token" in found.tokens_basis
    assert found.cache is not None
    assert (found.cache.conversations, found.cache.cached) == (70, 0)
    assert "No capture of this version" in found.cache.basis


def test_times_are_null_with_words_until_there_is_a_past(bench: Bench) -> None:
    found = bench.look(bench.spec())
    assert found.seconds is None
    assert {part.phase for part in found.parts} == {"precompute", "train", "evaluate"}
    assert all("No past job of this kind" in part.basis for part in found.parts)


def near(seconds: float) -> Any:
    """Return a value that equals `seconds` up to what the test itself takes."""
    return pytest.approx(seconds, abs=0.5)


def test_times_come_from_past_jobs_of_the_same_checkpoints(bench: Bench) -> None:
    bench.captured(missing_entries=10, missing_rows=290)
    teacher, student = bench.teacher.id, bench.student.id
    bench.past(
        JobKind.PRECOMPUTE,
        {"teacher_id": teacher},
        {"report": {"new_rows": 290, "seconds": 10}},
        took=14,
    )
    for seconds, beside in ((10, 5), (20, 6), (40, 7)):
        run = service.start(bench.session, bench.project, bench.spec(), owner="ada")[0]
        # The loop with its validations took 10, 20 and 40 s; its steps alone half of that.
        result = {"tokens": 24_000, "seconds": seconds / 2, "lasted": seconds}
        bench.past(JobKind.TRAIN, {"run_id": run.id}, result, took=seconds + beside)
    bench.past(
        JobKind.EVALUATE,
        {"checkpoint_id": student},
        {"report": {"conversations": 30, "seconds": 60}},
        took=65,
    )
    found = bench.look(bench.spec(schedule={"steps": 100, "batch_size": 8}))
    parts = {part.phase: part for part in found.parts}
    train = parts["train"].seconds
    assert train is not None
    assert (train.low, train.middle, train.high) == (near(10 + 5), near(20 + 6), near(40 + 7))
    assert parts["train"].basis == (
        "From 3 past jobs of this checkpoint, 1,200 tokens/s; 6 s to start, load and save, as 3 "
        "past jobs took."
    )
    early = bench.look(bench.spec(schedule={"steps": 100, "batch_size": 8, "patience": 3})).parts[1]
    assert early.seconds == train, "it may be all of them"
    assert early.basis.startswith("At most: 3 validations without improvement end it earlier. From")
    assert found.seconds is not None
    assert found.seconds.middle == near(14 + 26 + 65)
    assert found.seconds.low == near(14 / 1.25 + 15 + 65 / 1.25)


def test_a_run_whose_cache_is_complete_still_starts_the_job_that_looks_at_it(bench: Bench) -> None:
    bench.captured(missing_entries=0, missing_rows=0)
    fill = bench.look(bench.spec()).parts[0]
    assert (fill.phase, fill.seconds) == ("precompute", START)
    assert fill.basis == "Nothing is left to do; 8 s to start is assumed, since no past job tells."
    teacher = {"teacher_id": bench.teacher.id}
    bench.past(JobKind.PRECOMPUTE, teacher, {"report": {"new_rows": 0, "seconds": 0.1}}, took=4.1)
    fill = bench.look(bench.spec()).parts[0]
    assert fill.seconds is not None
    assert (fill.seconds.low, fill.seconds.middle) == (near(4 / 1.25), near(4))
    assert fill.basis == "Nothing is left to do; 4 s to start, load and save, as 1 past job took."


def test_past_jobs_that_cannot_tell_their_start_leave_it_assumed(bench: Bench) -> None:
    run = service.start(bench.session, bench.project, bench.spec(), owner="ada")[0]
    # As older installations left it: the seconds of the steps, nothing of what lay between.
    bench.past(JobKind.TRAIN, {"run_id": run.id}, {"tokens": 1000, "seconds": 10}, took=30)
    spec = bench.spec(schedule={"steps": 1, "batch_size": 1})
    part = next(p for p in bench.look(spec).parts if p.phase == "train")
    assert part.seconds is not None
    assert part.seconds.middle == near(8)
    assert "8 s to start is assumed" in part.basis


def test_other_checkpoints_are_scaled_by_their_compute(bench: Bench) -> None:
    big = made_rows.checkpoint(bench.session, bench.project, "big", parameters_compute=2_000_000)
    bench.captured()
    run = service.start(bench.session, bench.project, bench.spec(student=big), owner="ada")[0]
    result = {"tokens": 1000, "seconds": 9, "lasted": 10}
    bench.past(JobKind.TRAIN, {"run_id": run.id}, result, took=15)
    found = bench.look(bench.spec(schedule={"steps": 100, "batch_size": 1}))
    part = next(p for p in found.parts if p.phase == "train")
    assert part.seconds is not None
    # 100 × 30 tokens at twice the 100 a second that twice the compute allowed; 5 s to start.
    assert part.seconds.middle == near(3000 / 200 + 5)
    assert "scaled by compute" in part.basis


def test_labels_only_trains_on_its_share_of_the_references(bench: Bench) -> None:
    spec = bench.spec(
        objective={"kind": "ce", "alpha": 0, "ce_target": "reference"},
        render={"answer": "reference"},
        schedule={"steps": 6, "batch_size": 4},
    )
    subject = service.subject_of(bench.session, bench.project, spec)
    # 20 of 100 conversations have one; 60 of the 100 are for training.
    assert trained_on(subject, spec) == 12
    assert epochs(subject, spec) == 2.0


def test_a_version_that_was_captured_at_another_length_is_not_called_new(bench: Bench) -> None:
    bench.captured()
    cover = bench.look(bench.spec(render={"max_tokens": 77})).cache
    assert cover is not None
    assert "captured with other rendering settings" in cover.basis


@pytest.mark.parametrize(
    ("profile", "bytes_a_row"),
    [
        (CaptureProfile(), 67),
        (CaptureProfile(name="sampled"), 67 + 8 * 3),
        (CaptureProfile(k_max=512), 512 * 3),
        (CaptureProfile(name="audit"), 256 * 4),
        (CaptureProfile(name="dense"), 40_000 * 4),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_a_row_takes_follows_from_its_profile(
    profile: CaptureProfile, bytes_a_row: float
) -> None:
    assert expected_bytes(profile, 40_000) == bytes_a_row


def test_a_run_on_some_conversations_captures_no_more_than_it_reads(bench: Bench) -> None:
    whole, some = bench.spec(), bench.spec(max_train_conversations=10)
    found = [bench.look(spec).cache for spec in (whole, some)]
    assert found[0] is not None
    assert found[1] is not None
    train, validation = (bench.version.funnel or {})["splits"]["train"], 10
    share = (10 + validation) / (train + validation)
    assert found[1].missing_tokens == pytest.approx(share * found[0].missing_tokens, abs=1)
    assert capture_of(some).max_train_conversations == 10
    bench.captured(missing_entries=0, missing_rows=0)
    known = bench.look(some).cache
    assert known is not None
    assert known.missing_tokens == 0
