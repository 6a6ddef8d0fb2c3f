"""Projects: slugs, tolerance in shown points, refusals."""

import pytest
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.errors import InvalidInput, NotFound
from app.projects import queries, service
from app.projects.schemas import ProjectCreate, ProjectEdit
from tests.support import seeds


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Support Router", "support-router"), ("Café №1", "cafe-no1"), ("***", "project")],
)
def test_slugs(name: str, slug: str) -> None:
    assert service.slug_of(name) == slug


def test_equal_names_get_numbers_and_reserved_words_are_not_taken(session: Session) -> None:
    made = [
        service.create(session, ProjectCreate(name=name), owner_id=None).slug
        for name in ("Router", "router", "Router!", "New")
    ]
    assert made == ["router", "router-2", "router-3", "new-2"]
    assert service.get(session, "router-2").name == "router"
    with pytest.raises(NotFound):
        service.get(session, "none")


def test_tolerance_is_stored_in_the_metrics_unit(session: Session) -> None:
    project = service.create(session, ProjectCreate(name="P", tolerance=2.0), owner_id=None)
    assert project.tolerance == pytest.approx(0.02)
    assert service.shown_tolerance(project) == pytest.approx(2.0)
    service.edit(session, project, ProjectEdit(deciding_metric="kl", tolerance=0.5))
    assert project.tolerance == pytest.approx(0.5)


def test_refusals(session: Session) -> None:
    with pytest.raises(ValidationError):
        ProjectCreate(name="P", deciding_metric="vibes")
    with pytest.raises(ValidationError):
        ProjectCreate(name="  ")
    project = service.create(session, ProjectCreate(name="P"), owner_id=None)
    with pytest.raises(InvalidInput, match="one"):
        service.edit(session, project, ProjectEdit(teacher_id=1, student_id=1))


def test_teacher_and_student_are_of_the_project(session: Session) -> None:
    mine, other = seeds.project(session, "Mine"), seeds.project(session, "Other")
    a, b, strange = (
        seeds.checkpoint(session, p, n) for p, n in ((mine, "a"), (mine, "b"), (other, "c"))
    )
    service.edit(session, mine, ProjectEdit(name="Ours", teacher_id=a.id, student_id=b.id))
    assert (mine.name, mine.slug, mine.teacher_id, mine.student_id) == ("Ours", "mine", a.id, b.id)
    with pytest.raises(InvalidInput) as caught:
        service.edit(session, mine, ProjectEdit(teacher_id=strange.id, student_id=b.id))
    assert list(caught.value.fields) == ["teacher_id"]
    service.edit(session, mine, ProjectEdit())
    assert (mine.name, mine.teacher_id) == ("Ours", None)
    with pytest.raises(NotFound):
        service.use_as(session, mine, "teacher", strange.id)


def test_search_takes_percent_literally(session: Session) -> None:
    for name in ("100% right", "other"):
        service.create(session, ProjectCreate(name=name), owner_id=None)
    assert [p.name for p in queries.all_projects(session, search="%")] == ["100% right"]
