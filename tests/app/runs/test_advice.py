"""What forbids a run and what is doubtful, before it starts."""

from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.runs import queries, service
from app.settings import Settings
from app.specs.checkpoint import verdict_of_cards
from app.specs.teacher import CaptureProfile
from app.teacher_cache import queries as cache
from tests.app.runs.conftest import RENDER, Bench
from tests.support import made_rows

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
        ({"referenced": {"validation": 9}}, REFERENCE, "all have fallen into the parts held out"),
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


def test_a_checkpoint_that_is_not_ready_blocks(bench: Bench) -> None:
    bench.student.state, bench.student.card = "registering", None
    found = bench.look(bench.spec())
    assert found.blocked == "“student” is registering. Wait for its job."
    assert (found.tokens, found.seconds) == (0, None)


@pytest.mark.parametrize(
    ("version", "training", "card", "words"),
    [
        ({"splits": {"train": 9, "test": 2}}, {}, {}, "the last weights are kept, not the best"),
        ({"referenced": {"train": 9}}, REFERENCE, {}, "No validation conversation has a reference"),
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
        ({}, {"objective": {"teacher": "live"}}, {}, "is held beside the student"),
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


def test_means_are_over_every_row_that_was_measured(bench: Bench) -> None:
    bench.captured(new_rows=100, captured_mass={"1": 0.9, "2": 0.2}, mean_entropy=1.0)
    bench.captured(new_rows=300, captured_mass={"1": 0.5, "2": 0.4}, mean_entropy=2.0)
    bench.captured(new_rows=0, captured_mass={})
    report = cache.report(bench.session, bench.space())
    assert report is not None
    assert report.measured_rows == 400
    assert report.captured_mass == pytest.approx({"1": 0.6, "2": 0.35})
    assert report.mean_entropy == pytest.approx(1.75)


def test_audit_rows_are_not_advised_to_who_has_them(bench: Bench) -> None:
    spec = bench.spec(objective={"temperature": 2})
    bench.captured(captured_mass={"1": 0.9, "2": 0.3})
    assert "audit rows or the live teacher keep more" in " ".join(bench.look(spec).warnings)
    audit = CaptureProfile(name="audit")
    bench.captured(profile=audit, captured_mass={"1": 0.97, "2": 0.5})
    words = " ".join(bench.look(spec.model_copy(update={"capture": audit})).warnings)
    assert "; the live teacher keeps more" in words


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


def test_packing_is_refused_for_a_type_that_leaks_and_turned_off_by_a_button(bench: Bench) -> None:
    assert bench.look(bench.spec(schedule={"packing": True})).blocked is None
    mamba = made_rows.checkpoint(
        bench.session, bench.project, "mamba", architecture="MambaForCausalLM"
    )
    found = bench.look(bench.spec(student=mamba, schedule={"packing": True}))
    [reason] = found.reasons
    assert reason.sentence.endswith("“mamba” is a MambaForCausalLM. Turn packing off.")
    assert reason.field == "packing"
    assert [m.values for m in reason.mends] == [{"packing": ""}]
    assert bench.look(bench.spec(student=mamba)).blocked is None


@pytest.mark.parametrize(
    ("objective", "warned"), [({}, False), ({"temperature": 2}, True), ({"kind": "jsd"}, True)]
)
def test_samples_that_an_objective_cannot_read_are_told(
    objective: dict[str, Any], warned: bool, bench: Bench
) -> None:
    spec = bench.spec(objective=objective)
    spec = spec.model_copy(update={"capture": CaptureProfile(name="sampled")})
    found = bench.look(spec)
    assert found.blocked is None
    assert any("samples serve forward KL" in words for words in found.warnings) is warned


def test_dense_rows_of_a_large_vocabulary_are_refused_with_two_ways_out(bench: Bench) -> None:
    dense = CaptureProfile(name="dense")
    small = bench.look(bench.spec().model_copy(update={"capture": dense}))
    assert small.blocked is None
    card = made_rows.card(tokenizer_entries=49_152, vocabulary=49_152)
    bench.teacher.card = bench.student.card = card.model_dump(mode="json")
    found = bench.look(bench.spec().model_copy(update={"capture": dense}))
    assert "keep all 49,152 tokens of the vocabulary, about 192" in str(found.blocked)
    mends = [mend.values for reason in found.reasons for mend in reason.mends]
    assert mends == [{"profile": "audit"}, {"teacher_from": "live"}]


def test_a_live_teacher_needs_no_grid_and_no_cache(bench: Bench) -> None:
    spec = bench.spec(objective={"teacher": "live", "temperature": 1.5})
    found = bench.look(spec)
    assert found.blocked is None
    assert found.cache is None
    assert "cache" not in found.disk
    run, training = service.start(bench.session, bench.project, spec, owner="ada")
    jobs = queries.by_number(bench.session, bench.project.id, run.number)
    assert jobs is not None
    assert [phase.role for phase in jobs.phases if phase.role != "evaluate"] == ["train"]
    assert training.state == "queued"
