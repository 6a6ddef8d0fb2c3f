"""Imports what registers itself: every models module, and the services that hear of jobs' ends.

Whoever may end a job (web, dispatcher, workers) or migrates imports this.
"""

from app.accounts import models as accounts
from app.checkpoints import models as checkpoints
from app.checkpoints import service as checkpoints_service
from app.datasets import models as datasets
from app.datasets import service as datasets_service
from app.db.base import Base
from app.evaluations import models as evaluations
from app.evaluations import service as evaluations_service
from app.events import models as events
from app.jobs import models as jobs
from app.projects import models as projects
from app.runs import models as runs
from app.teacher_cache import models as teacher_cache

metadata = Base.metadata
ENDINGS = (checkpoints_service, datasets_service, evaluations_service)
MODULES = (
    accounts,
    checkpoints,
    datasets,
    evaluations,
    events,
    jobs,
    projects,
    runs,
    teacher_cache,
)
