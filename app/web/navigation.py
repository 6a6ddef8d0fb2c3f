"""Sidebar entries: each is shown once a route of its name exists, so no entry leads nowhere."""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.routing import NoMatchFound


@dataclass(frozen=True, slots=True)
class NavItem:
    key: str
    """What a page passes as `nav`."""
    label: str
    icon: str
    route: str
    """Name of the route; those of a project take the path parameter `project`."""


@dataclass(frozen=True, slots=True)
class NavLink:
    key: str
    label: str
    icon: str
    href: str


PROJECTS = NavItem("projects", "Projects", "stack-2", "projects.index")
INSTALLATION = (NavItem("queue", "Queue", "list-details", "jobs.queue"),)
PROJECT = (
    NavItem("overview", "Overview", "home", "projects.show"),
    NavItem("data", "Data", "database", "datasets.index"),
    NavItem("checkpoints", "Checkpoints", "scale", "checkpoints.index"),
    NavItem("caches", "Teacher cache", "archive", "caches.index"),
    NavItem("runs", "Runs", "player-play", "runs.index"),
    NavItem("compare", "Compare", "table", "runs.compare"),
    NavItem("evaluation", "Evaluation", "chart-dots-3", "evaluations.index"),
)
ALL = (PROJECTS, *INSTALLATION, *PROJECT)


def href(request: Request, route: str, **path: Any) -> str | None:
    """Return the address of a named route, or None while no such route exists."""
    try:
        return str(request.app.url_path_for(route, **path))
    except NoMatchFound:
        return None


def _links(request: Request, items: tuple[NavItem, ...], **path: Any) -> tuple[NavLink, ...]:
    found = ((item, href(request, item.route, **path)) for item in items)
    return tuple(NavLink(i.key, i.label, i.icon, link) for i, link in found if link is not None)


def installation(request: Request) -> tuple[NavLink, ...]:
    return _links(request, (PROJECTS, *INSTALLATION))


def project(request: Request, current: Any) -> tuple[NavLink, ...]:
    return _links(request, PROJECT, project=current.slug)
