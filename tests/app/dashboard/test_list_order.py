"""Lists know their sort words: the API sorts as pages do and refuses others, pages drop them."""

import pytest
from starlette.testclient import TestClient

from app.specs.jobs import JobState
from app.web.deps import Services
from tests.support import seeds

P = "/projects/routing"
WORDS = {
    "/overview": "activity, name or runs",
    f"{P}/runs": "number, name or value",
    f"{P}/evaluations": "id, name, role or state",
}
PAGES = ("/projects", f"{P}/runs", f"{P}/evaluations", f"{P}/datasets", f"{P}/compare")


@pytest.fixture
def _rows(parts: Services) -> None:
    """Runs #1 b (10 right of 200), #2 a (30) and #3 c, which was never evaluated."""
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        version = seeds.version(session, project)
        for number, (name, right) in enumerate((("b", 10), ("a", 30)), 1):
            run = seeds.run(session, project, number, name=name)
            seeds.evaluation(
                session, project, version.id, role="distilled", name=name, right=right,
                run_id=run.id,
            )  # fmt: skip
        seeds.run(session, project, 3, name="c", state=JobState.FAILED)
        seeds.project(session, "Alpha")


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("path", WORDS)
def test_the_api_refuses_words_it_does_not_know(api_client: TestClient, path: str) -> None:
    answer = api_client.get(f"/api/v1{path}?sort=speed")
    assert answer.status_code == 422
    assert answer.json()["fields"] == {"sort": f"Must be {WORDS[path]}, not “speed”."}
    answer = api_client.get(f"/api/v1{path}?order=up")
    assert answer.json()["fields"] == {"order": "Must be asc or desc, not “up”."}
    assert api_client.get(f"/api/v1{path}?sort=&order=").status_code == 200


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize("path", PAGES)
def test_pages_lead_to_their_own_order(signed_in: TestClient, path: str) -> None:
    answer = signed_in.get(f"{path}?sort=speed")
    assert (answer.status_code, answer.headers["location"]) == (303, path)


@pytest.mark.usefixtures("_rows")
def test_filters_survive_an_unknown_word(signed_in: TestClient) -> None:
    answer = signed_in.get(f"{P}/runs?sort=speed&order=asc&search=a&after=x")
    assert answer.headers["location"] == f"{P}/runs?search=a"
    answer = signed_in.get(f"{P}/compare?run=1&run=2&sort=speed&diff=0")
    assert answer.headers["location"] == f"{P}/compare?run=1&run=2&diff=0"
    assert signed_in.get(f"{P}/compare?run=1&sort=name&order=asc").status_code == 200


@pytest.mark.usefixtures("_rows")
def test_the_api_sorts_as_the_lists_do(api_client: TestClient) -> None:
    def names(path: str, query: str) -> list[str]:
        return [row["name"] for row in api_client.get(f"/api/v1{path}?{query}").json()]

    assert names(f"{P}/runs", "") == ["c", "a", "b"]
    assert names(f"{P}/runs", "sort=name") == ["a", "b", "c"]
    assert names(f"{P}/runs", "sort=value") == ["a", "b", "c"]
    assert names(f"{P}/runs", "sort=number&order=asc&limit=2") == ["b", "a"]
    assert names(f"{P}/runs", "state=failed&sort=name") == ["c"]
    assert names(f"{P}/runs", "search=b") == ["b"]
    assert names(f"{P}/evaluations", "sort=name&order=desc") == ["b", "a"]
    assert names("/overview", "sort=name") == ["Alpha", "Routing"]
    assert names("/overview", "sort=runs&limit=1") == ["Routing"]
