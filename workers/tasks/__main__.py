"""`python -m workers.tasks KIND`: the child process of a job."""

import sys

from workers.job.child import run_child
from workers.tasks.registry import task_of

sys.exit(run_child(task_of(sys.argv[1])))
