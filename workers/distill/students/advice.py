"""How much smaller a student is, and whether that is worth distilling."""

from dataclasses import dataclass

from app.specs.checkpoint import CheckpointCard

BAND = (5.0, 20.0)


@dataclass(frozen=True, slots=True)
class Compression:
    """Teacher ÷ student: parameters used per token, all parameters, bytes of the weights."""

    compute: float
    total: float
    bytes: float
    sentence: str


def compression(teacher: CheckpointCard, student: CheckpointCard) -> Compression:
    """Compare two cards; the band of 5–20× in compute is where distillation pays."""
    compute = teacher.parameters_compute / max(student.parameters_compute, 1)
    if compute < BAND[0]:
        verdict = "below 5×: quantise the teacher instead"
    elif compute > BAND[1]:
        verdict = "above 20×: expect a loss, go there in two steps"
    else:
        verdict = "inside the band of 5–20× where distillation pays"
    return Compression(
        compute=compute,
        total=teacher.parameters_total / max(student.parameters_total, 1),
        bytes=teacher.bytes / max(student.bytes, 1),
        sentence=f"The student uses {compute:.1f}× less compute per token, {verdict}.",
    )
