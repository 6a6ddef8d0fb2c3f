"""Every task by its kind of job."""

from importlib import import_module

from app.specs.jobs import QUEUE_OF, JobKind, Queue
from workers.job.task import Task

MODULES: dict[JobKind, str] = {
    JobKind.INSPECT: "ingest",
    JobKind.IMPORT: "ingest",
    JobKind.FREEZE: "ingest",
    JobKind.REGISTER: "checkpoints",
    JobKind.PRUNE: "checkpoints",
    JobKind.GENERATE: "generate",
    JobKind.PRECOMPUTE: "precompute",
    JobKind.TRAIN: "train",
    JobKind.EVALUATE: "evaluate",
    JobKind.PREVIEW: "preview",
}


def import_tasks(queue: Queue) -> None:
    """Import the modules of a queue's tasks: before a job is claimed and its lease runs."""
    for kind, module in MODULES.items():
        if QUEUE_OF[kind] == queue:
            import_module(f"workers.tasks.{module}")


def task_of(kind: str) -> Task:
    """Return the task of a kind; its module is imported only when the kind is run."""
    module = import_module(f"workers.tasks.{MODULES[JobKind(kind)]}")
    tasks: dict[JobKind, Task] = module.TASKS
    return tasks[JobKind(kind)]
