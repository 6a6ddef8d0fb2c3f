"""What is doubtful about logged data, before and after its import."""

from collections.abc import Iterable

from app.checkpoints.models import Checkpoint
from app.specs.conversation import ImportFunnel


def other_models(models: Iterable[str], teacher: Checkpoint | None) -> list[str]:
    """Return the logged models that are not the project's teacher, by name; [] when none is set.

    A log may know the teacher by its name here, or by that of its folder or repository.
    """
    if teacher is None:
        return []
    origin = teacher.origin
    names = (teacher.name, origin.get("repo_id"), origin.get("path"))
    known = {_plain(name) for name in names if name}
    return [name for name in models if _plain(name) not in known]


def _plain(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def warnings_of(funnel: ImportFunnel, teacher: Checkpoint | None) -> list[str]:
    """Return what the page of a version warns of, as sentences."""
    found = []
    others = other_models(funnel.models, teacher)
    if others and teacher is not None:
        named = ", ".join(f"“{name}” in {_calls(funnel.models[name])}" for name in others)
        found.append(
            f"Another model answered: the log names {named}; the project's teacher is "
            f"“{teacher.name}”. If they are not the same model, the student is taught two "
            "different things."
        )
    if not funnel.splits.get("validation"):
        found.append(
            "No validation conversations: a run cannot tell its best weights and keeps its last. "
            "Import again with a larger validation share or with more data."
        )
    if not funnel.splits.get("test"):
        found.append(
            "No test conversations: nothing is held out to judge a student by. Import again with "
            "a larger test share or with more data."
        )
    return found


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"
