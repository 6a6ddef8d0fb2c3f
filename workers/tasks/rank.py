"""`python -m workers.tasks.rank KIND`: a further process of a job that shares its steps."""

import sys

from workers.job.ranks import run_rank
from workers.job.task import SharedTask
from workers.tasks.registry import task_of


def main(kind: str) -> int:
    task = task_of(kind)
    if not isinstance(task, SharedTask):
        sys.stderr.write(f"Jobs of kind {kind} are not shared.\n")
        return 2
    return run_rank(task)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
