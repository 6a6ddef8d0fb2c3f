"""Imports every models module, so that Alembic sees the whole schema."""

from app.accounts import models as accounts
from app.checkpoints import models as checkpoints
from app.datasets import models as datasets
from app.db.base import Base
from app.evaluations import models as evaluations
from app.events import models as events
from app.jobs import models as jobs
from app.projects import models as projects
from app.runs import models as runs
from app.teacher_cache import models as teacher_cache

metadata = Base.metadata
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
