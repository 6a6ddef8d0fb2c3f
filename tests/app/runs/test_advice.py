"""What is known before a run starts, by values worked out by hand."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.errors import Conflict
from app.evaluations import service as evaluations
from app.jobs.service import JobRequest, enqueue
from app.projects.models import Project
from app.runs import service
from app.runs.schemas import EstimateOut, PartOut
from app.runs.subject import epochs, trained_on
from app.runs.times import spread
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard, verdict_of_cards
from app.specs.jobs import JobKind, JobState, PrecomputeJob
from app.specs.teacher import CacheReport, CaptureProfile
from app.specs.training import RenderSpec, RunSpec, TrainingSpec
from app.teacher_cache import queries as cache
from app.teacher_cache import service as filling
from app.teacher_cache.models import CacheShard
from tests.support import made_rows

RENDER = RenderSpec()


class Bench:
    """A project with teacher (8,000,000 a token), student (1,000,000) and a frozen version."""

    def __init__(self, session: Session, settings: Settings, **version: Any) -> None:
        self.session, self.settings = session, settings
        self.project: Project = made_rows.project(session)
        self.teacher, self.student = made_rows.teacher_and_student(session, self.project)
        self.version: DatasetVersion = made_rows.version(session, self.project, settings, **version)

    def spec(self, *, student: Checkpoint | None = None, **training: Any) -> RunSpec:
        return RunSpec(
            name="kd",
            teacher_id=self.teacher.id,
            student_id=(student or self.student).id,
            dataset_version_id=self.version.id,
            training=TrainingSpec.model_validate(training),
        )

    def look(self, spec: RunSpec) -> EstimateOut:
        return service.estimate(self.session, self.project, spec, self.settings)

    def space(self) -> str:
        card = CheckpointCard.model_validate(self.teacher.card)
        return filling.space_of(card, CaptureProfile()).address

    def captured(self, **report: Any) -> None:
        """Record a capture of the version: 70 conversations, 30 tokens each, unless changed."""
        card = CheckpointCard.model_validate(self.teacher.card)
        space = filling.space_of(card, CaptureProfile())
        filling.open_space(self.session, space, teacher_id=self.teacher.id)
        job = PrecomputeJob(
            teacher_id=self.teacher.id, dataset_version_id=self.version.id, render=RENDER
        )
        values = {
            "entries": 70, "rows": 70 * 29, "new_entries": 70, "new_rows": 70 * 29,
            "bytes": 1, "seconds": 1.0, **report,
        }  # fmt: skip
        filling.captured(self.session, space.address, job, CacheReport.model_validate(values))

    def past(self, kind: JobKind, spec: dict[str, Any], result: dict[str, Any]) -> None:
        asked = PrecomputeJob(
            teacher_id=self.teacher.id, dataset_version_id=self.version.id, render=RENDER
        )
        job = enqueue(self.session, JobRequest(kind=kind, spec=asked, stream="x", title="past"))
        job.spec, job.result = spec, result
        made_rows.bring_to(self.session, job.id, JobState.SUCCEEDED)


@pytest.fixture
def bench(session: Session, settings: Settings) -> Bench:
    return Bench(session, settings)


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


def test_evaluations_of_the_tables_other_rows_are_counted_until_they_are_asked_for(
    bench: Bench,
) -> None:
    bench.past(
        JobKind.EVALUATE,
        {"checkpoint_id": bench.student.id},
        {"report": {"conversations": 30, "seconds": 60}},
    )

    def look() -> list[PartOut]:
        found = evaluations.estimate(bench.session, bench.project, bench.spec(), bench.settings)
        return [part for part in found.parts if part.phase == "evaluate"]

    own, others = look()
    assert (own.of, others.of) == ([], ["teacher", "undistilled"])
    assert own.seconds is not None
    assert others.seconds is not None
    # The student as long as the run's own, the teacher with eight times the compute.
    assert others.seconds.middle == pytest.approx(own.seconds.middle * 9)
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


def test_times_come_from_past_jobs_of_the_same_checkpoints(bench: Bench) -> None:
    bench.captured(missing_entries=10, missing_rows=290)
    teacher, student = bench.teacher.id, bench.student.id
    bench.past(
        JobKind.PRECOMPUTE, {"teacher_id": teacher}, {"report": {"new_rows": 290, "seconds": 10}}
    )
    for seconds in (10, 20, 40):
        run = service.start(bench.session, bench.project, bench.spec(), owner="ada")[0]
        result = {"tokens": 24_000, "seconds": seconds}
        bench.past(JobKind.TRAIN, {"run_id": run.id}, result)
    bench.past(
        JobKind.EVALUATE,
        {"checkpoint_id": student},
        {"report": {"conversations": 30, "seconds": 60}},
    )
    found = bench.look(bench.spec(schedule={"steps": 100, "batch_size": 8}))
    parts = {part.phase: part.seconds for part in found.parts}
    assert parts["train"] is not None
    assert (parts["train"].low, parts["train"].middle, parts["train"].high) == (10, 20, 40)
    assert found.seconds is not None
    assert found.seconds.middle == pytest.approx(10 + 20 + 60)
    assert found.seconds.low == pytest.approx(8 + 10 + 48)


def test_other_checkpoints_are_scaled_by_their_compute(bench: Bench) -> None:
    big = made_rows.checkpoint(bench.session, bench.project, "big", parameters_compute=2_000_000)
    bench.captured()
    run = service.start(bench.session, bench.project, bench.spec(student=big), owner="ada")[0]
    bench.past(JobKind.TRAIN, {"run_id": run.id}, {"tokens": 1000, "seconds": 10})
    found = bench.look(bench.spec(schedule={"steps": 1, "batch_size": 1}))
    part = next(p for p in found.parts if p.phase == "train")
    assert part.seconds is not None
    # 30 tokens at twice the 100 a second that twice the compute allowed.
    assert part.seconds.middle == pytest.approx(30 / 200)
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


REFERENCE = {
    "objective": {"kind": "ce", "alpha": 0, "ce_target": "reference"},
    "render": {"answer": "reference"},
}


@pytest.mark.parametrize(
    ("version", "training", "words"),
    [
        ({"state": "draft"}, {}, "is draft: freeze it"),
        ({"splits": {"test": 9}}, {}, "no training conversations"),
        ({"splits": {"train": 9, "validation": 2}}, {}, "test split has no conversations"),
        ({"references": 0}, REFERENCE, "No conversation of this version has a reference"),
        ({}, {"objective": {"temperature": 1.5}}, "Temperature 1.5 is not in the cache's grid"),
        ({}, {"trainable": {"top_layers": 999}}, "layers: train at most so many"),
    ],
)
def test_what_cannot_work_is_blocked_with_its_reason(
    session: Session,
    settings: Settings,
    version: dict[str, Any],
    training: dict[str, Any],
    words: str,
) -> None:
    bench = Bench(session, settings, **version)
    assert words in str(bench.look(bench.spec(**training)).blocked)


def test_a_teacher_that_is_its_own_student_is_refused(bench: Bench) -> None:
    spec = bench.spec().model_copy(update={"student_id": bench.teacher.id})
    assert "one checkpoint" in str(bench.look(spec).blocked)


def test_a_version_that_was_captured_at_another_length_is_not_called_new(bench: Bench) -> None:
    bench.captured()
    cover = bench.look(bench.spec(render={"max_tokens": 77})).cache
    assert cover is not None
    assert "captured with other rendering settings" in cover.basis


def test_a_checkpoint_that_is_not_ready_blocks(bench: Bench) -> None:
    bench.student.state, bench.student.card = "registering", None
    found = bench.look(bench.spec())
    assert found.blocked == "“student” is registering. Wait for its job."
    assert (found.tokens, found.seconds) == (0, None)


@pytest.mark.parametrize(
    ("version", "training", "card", "words"),
    [
        ({"splits": {"train": 9, "test": 2}}, {}, {}, "the last weights are kept, not the best"),
        ({}, {"render": {"max_tokens": 4096}}, {}, "the student was made for 2,048"),
        ({}, {}, {"parameters_compute": 16_000_000}, "larger than the teacher"),
        (
            {},
            {},
            {"parameters_compute": 4_000_000},
            "Compression is 2.0× in compute, below the band",
        ),
        (
            {},
            {},
            {"parameters_compute": 200_000},
            "Compression is 40.0× in compute, above the band",
        ),
        ({}, {"schedule": {"steps": 5}}, {}, "Warm-up (10 steps) is as long as the training"),
        ({}, {"schedule": {"steps": 400}}, {}, "107 epochs"),
        ({}, {"objective": {"temperature": 2}}, {}, "holds less of the teacher's distribution"),
    ],
)
def test_what_is_doubtful_is_a_warning(
    session: Session,
    settings: Settings,
    version: dict[str, Any],
    training: dict[str, Any],
    card: dict[str, Any],
    words: str,
) -> None:
    bench = Bench(session, settings, **version)
    student = made_rows.checkpoint(session, bench.project, "other", **card)
    found = bench.look(bench.spec(student=student, **training))
    assert found.blocked is None
    assert any(words in warning for warning in found.warnings), found.warnings


def test_the_captured_mass_is_told_where_it_was_measured(bench: Bench) -> None:
    bench.captured(captured_mass={"1": 0.9, "2": 0.3134})
    warnings = bench.look(bench.spec(objective={"temperature": 2})).warnings
    assert any("holds 31.3 % of the teacher's distribution" in words for words in warnings)
    assert not any("distribution" in words for words in bench.look(bench.spec()).warnings)


def test_a_capture_that_found_everything_keeps_the_measured_mass(bench: Bench) -> None:
    bench.captured(captured_mass={"1": 0.9})
    bench.captured(new_entries=0, new_rows=0, captured_mass={})
    report = cache.report(bench.session, bench.space())
    assert report is not None
    assert report.captured_mass == {"1": 0.9}
    covered = cache.coverage(bench.session, bench.space(), bench.version.id, RENDER)
    assert covered is not None
    assert covered.missing_rows == 0


@pytest.mark.parametrize(
    ("change", "kind", "allowed"),
    [
        ({}, "identical", True),
        ({"vocabulary": 640}, "padded", True),
        ({"vocabulary": 500}, "different", False),
        ({"template_fingerprint": "9" * 64}, "other_template", False),
        ({"tokenizer_fingerprint": "9" * 64}, "different", False),
    ],
)
def test_cards_tell_whether_ids_agree(change: dict[str, Any], kind: str, allowed: bool) -> None:
    found = verdict_of_cards(made_rows.card(), made_rows.card(**change))
    assert (found.kind, found.logits_allowed) == (kind, allowed)


def test_a_name_twice_in_a_group_is_refused(bench: Bench) -> None:
    spec = bench.spec().model_copy(update={"group": "g"})
    service.start(bench.session, bench.project, spec, owner="ada")
    assert "Run #1 of group “g” is called “kd” already" in str(bench.look(spec).blocked)
