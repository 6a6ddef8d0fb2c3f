"""Every route of the program declares a permission, and keeps strangers out."""

import re
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.security.permissions import Permission, Principal, allows
from app.web.deps import Open, Require, require

PAGES = {"GET", "HEAD"}
SAFE = {*PAGES, "OPTIONS"}


def _calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for child in dependant.dependencies:
        yield from _calls(child)


def permissions_of(route: APIRoute) -> list[Permission]:
    calls = _calls(route.dependant)
    return [call.permission for call in calls if isinstance(call, Require | Open)]


def api_routes(app: FastAPI) -> list[APIRoute]:
    """Return every route, those of included routers too; only static files are mounted."""
    found = []
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIRoute):
            found.append(route)
        elif isinstance(route, Mount):
            assert route.path == "/static"
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            assert isinstance(inner, APIRouter), f"{route!r} cannot be checked"
            waiting.extend(inner.routes)
    return found


def undeclared(app: FastAPI) -> list[str]:
    return [r.path for r in api_routes(app) if len(permissions_of(r)) != 1]


def test_every_route_declares_one_permission(app: FastAPI) -> None:
    assert len(api_routes(app)) > 10
    assert undeclared(app) == []


def test_the_walk_finds_a_route_that_declares_none(app: FastAPI) -> None:
    router = APIRouter()
    router.add_api_route("/forgotten", lambda: "x")
    app.include_router(router)
    assert undeclared(app) == ["/forgotten"]


def _filled(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "1", path)


def test_strangers_get_nowhere(app: FastAPI, client: TestClient) -> None:
    checked = 0
    for route in api_routes(app):
        if permissions_of(route) == [Permission.PUBLIC]:
            continue
        for method in route.methods:
            checked += 1
            answer = client.request(method, _filled(route.path))
            page = method in PAGES and not route.path.startswith("/api/")
            if page:
                assert answer.status_code == 303, (method, route.path)
                assert answer.headers["location"].startswith("/sign-in")
            else:
                assert answer.status_code == 401, (method, route.path)
                if route.path.startswith("/api/"):
                    assert answer.headers["www-authenticate"] == "Bearer"
    assert checked > 8


def test_unsafe_routes_need_the_session_token(app: FastAPI, signed_in: TestClient) -> None:
    for route in api_routes(app):
        for method in route.methods - SAFE:
            if permissions_of(route) == [Permission.PUBLIC]:
                continue
            answer = signed_in.request(
                method, _filled(route.path), headers={"X-CSRF-Token": "wrong"}
            )
            assert answer.status_code == 403, (method, route.path)


@pytest.mark.parametrize(
    "change",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebound.example"},
        {"Content-Type": "text/plain"},
    ],
)
def test_no_route_takes_a_foreign_request(
    app: FastAPI, signed_in: TestClient, change: dict[str, str]
) -> None:
    for route in api_routes(app):
        for method in route.methods - SAFE:
            answer = signed_in.request(method, _filled(route.path), headers=change, content=b"{}")
            assert answer.status_code in {400, 403, 415}, (method, route.path, change)


def test_admin_permission_refuses_others(app: FastAPI, signed_in: TestClient) -> None:
    ada = Principal(1, "ada", is_admin=True, by="cookie")
    bob = Principal(2, "bob", is_admin=False, by="cookie")
    assert allows(ada, Permission.ADMIN)
    assert not allows(bob, Permission.ADMIN)
    assert not allows(None, Permission.READ)
    assert allows(None, Permission.PUBLIC)
    assert allows(bob, Permission.WRITE)

    def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.principal.name)

    app.add_api_route("/admin-only", page, dependencies=[require(Permission.ADMIN)])
    assert signed_in.get("/admin-only").text == "ada"
