"""The account pages and the API, through the whole web program."""

import re
from collections.abc import Callable

from sqlalchemy import select
from starlette.testclient import TestClient

from app.accounts import service
from app.accounts.models import User
from app.accounts.routes import FRESH_TOKEN
from app.web.deps import Services

PASSWORD = "correct horse battery"


def _link(parts: Services) -> str:
    with parts.sessions.begin() as session:
        secret = service.ensure_setup_link(session)
    assert secret is not None
    return secret


def test_set_up_then_signed_in_beside_a_local_token(client: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        token = service.ensure_local_token(session, parts.settings.token_file)
    secret = _link(parts)
    page = client.get(f"/setup/{secret}")
    assert "Make the first account" in page.text
    short = client.post(
        f"/setup/{secret}", data={"name": "Ada", "password": "short", "again": "short"}
    )
    assert short.status_code == 422
    assert 'value="Ada"' in short.text, "what was typed is kept"
    assert 'aria-describedby="f-password-h f-password-e"' in short.text
    done = client.post(
        f"/setup/{secret}", data={"name": "Ada", "password": PASSWORD, "again": PASSWORD}
    )
    assert done.status_code == 303
    cookie = done.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert client.get("/account").status_code == 200
    assert client.get("/api/v1/me").json()["name"] == "ada"
    me = client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})
    assert me.json()["name"] == service.LOCAL_USER
    assert client.get(f"/setup/{secret}").status_code == 404


def test_differing_passwords_are_a_sentence(client: TestClient, parts: Services) -> None:
    answer = client.post(
        f"/setup/{_link(parts)}", data={"name": "ada", "password": PASSWORD, "again": "x"}
    )
    assert answer.status_code == 422
    assert "The two passwords differ" in answer.text


def test_sign_in_returns_to_the_page_that_was_asked_for(
    client: TestClient, make_user: Callable[..., User]
) -> None:
    make_user()
    asked = client.get("/account?changed=token")
    assert asked.status_code == 303
    target = asked.headers["location"]
    assert target == "/sign-in?next=%2Faccount%3Fchanged%3Dtoken"
    form = client.get(target)
    assert 'name="next" value="/account?changed=token"' in form.text
    done = client.post(
        "/sign-in", data={"name": "ada", "password": PASSWORD, "next": "/account?changed=token"}
    )
    assert done.headers["location"] == "/account?changed=token"


def test_next_never_leads_elsewhere(client: TestClient, make_user: Callable[..., User]) -> None:
    make_user()
    for evil in ("https://evil.example", "//evil.example", "/\\evil.example", "javascript:x"):
        done = client.post("/sign-in", data={"name": "ada", "password": PASSWORD, "next": evil})
        assert done.headers["location"] == "/"
        client.cookies.clear()


def test_failures_are_counted_although_the_answer_is_an_error(
    client: TestClient, parts: Services, make_user: Callable[..., User]
) -> None:
    make_user()
    for _ in range(4):
        assert client.post("/sign-in", data={"name": "ada", "password": "x"}).status_code == 422
    throttled = client.post("/sign-in", data={"name": "ada", "password": PASSWORD})
    assert throttled.status_code == 429
    assert throttled.headers["retry-after"] == "1"
    with parts.sessions() as session:
        assert session.scalars(select(User.failed_sign_ins)).one() == 4


def test_sign_out_ends_the_session_on_the_server(signed_in: TestClient) -> None:
    kept = dict(signed_in.cookies)
    assert signed_in.post("/sign-out").headers["location"] == "/sign-in"
    signed_in.cookies.update(kept)
    assert signed_in.get("/account").status_code == 303


def test_token_is_shown_once(signed_in: TestClient) -> None:
    made = signed_in.post("/account/tokens", data={"name": "ci", "days": "30"})
    assert (made.status_code, made.headers["location"]) == (303, "/account")
    cookie = made.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "Path=/account;" in cookie
    shown = signed_in.get("/account")
    token = re.search(r"sh_[\w-]{43}", shown.text)
    assert token
    assert "API token made: ci." in shown.text
    again = signed_in.get("/account")
    assert token[0] not in again.text
    assert again.text.count("/revoke") == 1
    assert "ci" in again.text
    token_id = re.search(r"/account/tokens/(\d+)/revoke", again.text)
    assert token_id
    gone = signed_in.post(token_id[0])
    assert gone.status_code == 303
    assert "No API tokens" in signed_in.get(gone.headers["location"]).text


def test_only_an_own_live_token_is_shown(
    signed_in: TestClient, parts: Services, make_user: Callable[..., User]
) -> None:
    other = make_user("eve")
    with parts.sessions.begin() as session:
        _, strange = service.create_token(session, other.id, "evil", days=1)
    for value in (strange, "sh_made-up"):
        signed_in.cookies.set(FRESH_TOKEN, value, domain="127.0.0.1", path="/account")
        page = signed_in.get("/account").text
        assert "API token made" not in page
        assert value not in page


def test_the_account_takes_the_same_queries_however_many_tokens(
    signed_in: TestClient, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    counts = []
    for names in (["a"], [f"b{n}" for n in range(8)]):
        for name in names:
            signed_in.post("/account/tokens", data={"name": name, "days": "30"})
        counts.append(count_queries(lambda: signed_in.get("/account")))
    assert signed_in.get("/account").text.count("/revoke") == 9
    assert counts[0] == counts[1]


def test_change_password_page(signed_in: TestClient) -> None:
    wrong = {"current": "wrong", "password": PASSWORD, "again": PASSWORD}
    assert "not the current password" in signed_in.post("/account/password", data=wrong).text
    right = {"current": PASSWORD, "password": "a new long password", "again": "a new long password"}
    done = signed_in.post("/account/password", data=right)
    assert "Password changed" in signed_in.get(done.headers["location"]).text


def test_api_has_what_the_page_has(api_client: TestClient) -> None:
    made = api_client.post("/api/v1/tokens", json={"name": "x", "days": None}).json()
    listed = api_client.get("/api/v1/tokens").json()
    assert made["id"] in {row["id"] for row in listed}
    assert all("token" not in row for row in listed)
    assert api_client.delete(f"/api/v1/tokens/{made['id']}").status_code == 204
    assert api_client.delete(f"/api/v1/tokens/{made['id']}").status_code == 404
    refused = api_client.post("/api/v1/tokens", json={"name": "", "days": 0})
    assert refused.status_code == 422
    assert refused.json()["fields"]["days"] == "Must be at least 1."
