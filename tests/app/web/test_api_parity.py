"""Whatever a page gives or does, /api/v1 gives or does too: one table of every page route."""

from collections import Counter

from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from app.security.permissions import Permission
from app.web.deps import require
from tests.app.web.test_permissions import api_routes

API = "/api/v1"
P = "/projects/{project}"


class Why(str):
    """The reason why a page route has no counterpart."""

    __slots__ = ()


SIGNING_IN = Why("sessions and passwords belong to browsers; programs hold a token")
FORM = Why("an empty form: its fields are the schema of what it sends")
PROBE = Why("tells whether the program is up, to whoever asks")
QUESTION = Why("asks a person before something is stopped")

TABLE: dict[str, Why | tuple[str, ...]] = {
    "accounts.account": ("GET /me", "GET /tokens"),
    "accounts.setup": SIGNING_IN,
    "accounts.sign_in": SIGNING_IN,
    "change_password": SIGNING_IN,
    "caches.index": (f"GET {P}/caches",),
    "caches.remove": (f"DELETE {P}/caches/{{address}}",),
    "checkpoints.answer": (f"POST {P}/generations",),
    "checkpoints.cancel": ("POST /jobs/{job_id}/cancel",),
    "checkpoints.estimate": (f"POST {P}/checkpoints/students/estimate",),
    "checkpoints.events": ("GET /jobs/{job_id}/events",),
    "checkpoints.index": (f"GET {P}/checkpoints",),
    "checkpoints.key": (f"PUT {P}/checkpoints/{{checkpoint_id}}/key",),
    "checkpoints.new": FORM,
    "checkpoints.prune": (f"POST {P}/checkpoints/students",),
    "checkpoints.register": (f"POST {P}/checkpoints",),
    "checkpoints.remove": (f"DELETE {P}/checkpoints/{{checkpoint_id}}",),
    "checkpoints.retry": (f"POST {P}/checkpoints/{{checkpoint_id}}/retry",),
    "checkpoints.show": (f"GET {P}/checkpoints/{{checkpoint_id}}", "GET /jobs/{job_id}/log"),
    "checkpoints.use_as": (f"PUT {P}",),
    "create_token": ("POST /tokens",),
    "datasets.cancel": ("POST /jobs/{job_id}/cancel",),
    "datasets.conversation": (f"GET {P}/versions/{{version_id}}/conversations/{{row}}",),
    "datasets.conversations": (f"GET {P}/versions/{{version_id}}/conversations",),
    "datasets.drop_upload": (f"DELETE {P}/uploads/{{upload}}",),
    "datasets.events": ("GET /jobs/{job_id}/events",),
    "datasets.freeze": (f"POST {P}/versions/{{version_id}}/freeze",),
    "datasets.import": (f"POST {P}/imports",),
    "datasets.index": (f"GET {P}/uploads", f"GET {P}/versions"),
    "datasets.retry": ("POST /jobs/{job_id}/retry",),
    "datasets.show": (
        f"GET {P}/versions/{{version_id}}",
        f"GET {P}/versions/{{version_id}}/rejects",
    ),
    "datasets.upload": (f"POST {P}/uploads", f"PATCH {P}/uploads/{{upload}}", f"GET {P}/uploads"),
    "datasets.upload_events": ("GET /jobs/{job_id}/events",),
    "evaluations.download": (f"GET {P}/evaluations/{{evaluation_id}}/examples.parquet",),
    "evaluations.index": (f"GET {P}/evaluations",),
    "evaluations.prompt": (f"GET {P}/evaluations/{{evaluation_id}}/prompts/{{conversation_id}}",),
    "evaluations.retry": ("POST /jobs/{job_id}/retry",),
    "evaluations.show": (
        f"GET {P}/evaluations/{{evaluation_id}}",
        f"GET {P}/evaluations/{{evaluation_id}}/examples",
        f"GET {P}/comparison",
    ),
    "healthz": PROBE,
    "home": Why("leads to the projects"),
    "jobs.cancel": ("POST /jobs/{job_id}/cancel",),
    "jobs.queue": ("GET /jobs", "GET /workers"),
    "jobs.retry": ("POST /jobs/{job_id}/retry",),
    "jobs.stop": QUESTION,
    "projects.create": ("POST /projects", f"POST {P}/checkpoints"),
    "projects.edit": (f"GET {P}",),
    "projects.index": ("GET /overview",),
    "projects.new": FORM,
    "projects.save": (f"PUT {P}",),
    "projects.show": (f"GET {P}/overview", f"GET {P}/comparison", f"GET {P}/runs", "GET /jobs"),
    "readyz": PROBE,
    "revoke_token": ("DELETE /tokens/{token_id}",),
    "runs.ask_preview": (f"POST {P}/runs/preview",),
    "runs.cancel": (f"POST {P}/runs/{{number}}/cancel",),
    "runs.compare": (f"GET {P}/comparison",),
    "runs.events": (f"GET {P}/runs/{{number}}/events",),
    "runs.index": (f"GET {P}/runs",),
    "runs.log": (f"GET {P}/runs/{{number}}/log",),
    "runs.new": (f"POST {P}/runs/estimate",),
    "runs.preview": (f"GET {P}/runs/preview/{{job_id}}",),
    "runs.retry": (f"POST {P}/runs/{{number}}/retry",),
    "runs.show": (f"GET {P}/runs/{{number}}", f"GET {P}/runs/{{number}}/series"),
    "runs.start": (f"POST {P}/runs", f"POST {P}/runs/group"),
    "setup": SIGNING_IN,
    "sign_in": SIGNING_IN,
    "sign_out": SIGNING_IN,
}


def pages(app: FastAPI) -> list[str]:
    """Return the names of the routes that people's browsers ask."""
    return [route.name for route in api_routes(app) if not route.path.startswith(f"{API}/")]


def test_every_page_route_has_its_api_route_or_a_reason(app: FastAPI) -> None:
    found = Counter(pages(app))
    assert [name for name, count in found.items() if count > 1] == []
    assert set(found) - set(TABLE) == set(), "name its API route, or say why there is none"
    assert set(TABLE) - set(found) == set(), "the page is gone"


def test_every_api_route_named_here_is_there(app: FastAPI) -> None:
    there = {
        f"{method} {route.path.removeprefix(API)}"
        for route in api_routes(app)
        if route.path.startswith(f"{API}/")
        for method in route.methods
    }
    named = {name for entry in TABLE.values() if not isinstance(entry, Why) for name in entry}
    assert named - there == set()


def test_the_schema_lists_every_api_route(client: TestClient, app: FastAPI) -> None:
    schema = client.get(f"{API}/openapi.json").json()
    paths = {route.path for route in api_routes(app) if route.path.startswith(f"{API}/")}
    assert paths - set(schema["paths"]) == {f"{API}/openapi.json"}
    run = schema["components"]["schemas"]["RunDetail"]["properties"]
    assert {"attempts", "snapshots", "jobs"} <= set(run)
    live = schema["paths"][f"{API}{P}/runs/{{number}}/events"]["get"]["responses"]["200"]
    assert list(live["content"]) == ["text/event-stream"]


def test_a_new_page_is_noticed(app: FastAPI) -> None:
    router = APIRouter()
    router.add_api_route(
        "/new-page",
        lambda: PlainTextResponse("x"),
        name="new.page",
        dependencies=[require(Permission.READ)],
    )
    app.include_router(router)
    assert set(pages(app)) - set(TABLE) == {"new.page"}


def test_the_schema_says_how_to_call_and_what_a_refusal_looks_like(client: TestClient) -> None:
    schema = client.get(f"{API}/openapi.json").json()
    assert schema["security"] == [{"token": []}]
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    shape = schema["components"]["schemas"]["Refusal"]
    for answer in (client.get(f"{API}/projects"), client.get(f"{API}/nothing")):
        assert answer.status_code in (401, 404)
        assert set(shape["required"]) <= set(answer.json()) <= set(shape["properties"])
    for path in schema["paths"].values():
        for operation in path.values():
            named = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert named == {"$ref": "#/components/schemas/Refusal"}
            assert "HTTPValidationError" not in str(operation)
    uploads = schema["paths"][f"{API}{P}/uploads"]
    assert "201" in uploads["post"]["responses"]


def test_a_body_that_is_no_json_names_no_field(api_client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = api_client.post("/api/v1/projects", content=b'{"name": oops}', headers=headers)
    assert answer.status_code == 422
    assert list(answer.json()["fields"]) == ["form"]
    assert "The body is not JSON" in answer.json()["message"]
