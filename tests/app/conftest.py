"""The web program on a database of the test's own, and clients that are signed in."""

from collections.abc import Callable, Iterator

import pytest
import structlog
from fastapi import FastAPI
from playwright.sync_api import Browser, Page
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.accounts import service
from app.accounts.models import User
from app.accounts.schemas import FirstAccount
from app.main import create_app
from app.security import passwords
from app.settings import Settings
from app.web.deps import Services, cookie_name
from tests.support.browser import chromium, ensure_assets, serving, signed_in_page

ORIGIN = "http://127.0.0.1"
PASSWORD = "correct horse battery"
SAME_SITE = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}


class Recorder:
    """A broker that keeps what it was asked to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.up = True

    def send(self, signals: set[tuple[str, str]]) -> None:
        self.sent.extend(sorted(signals))

    def ping(self) -> bool:
        return self.up


@pytest.fixture(scope="session")
def quick_hash() -> str:
    """One real hash of PASSWORD for the whole run."""
    return passwords.hash_password(PASSWORD)


@pytest.fixture
def broker() -> Recorder:
    return Recorder()


@pytest.fixture
def app(settings: Settings, own_database: str, broker: Recorder) -> Iterator[FastAPI]:
    own = settings.model_copy(update={"database_url": own_database})
    app = create_app(own, broker=broker)
    yield app
    app.state.services.engine.dispose()


@pytest.fixture
def parts(app: FastAPI) -> Services:
    found: Services = app.state.services
    return found


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    """An anonymous browser on our own pages."""
    return TestClient(app, base_url=ORIGIN, headers=SAME_SITE, follow_redirects=False)


@pytest.fixture
def make_user(parts: Services, quick_hash: str) -> Callable[..., User]:
    def make(name: str = "ada", *, is_admin: bool = True) -> User:
        with parts.sessions.begin() as session:
            user = User(name=name, password_hash=quick_hash, is_admin=is_admin)
            session.add(user)
        return user

    return make


@pytest.fixture
def signed_in(app: FastAPI, parts: Services, make_user: Callable[..., User]) -> TestClient:
    """A browser with a session; unsafe requests carry its CSRF token in the header."""
    make_user()
    with parts.sessions.begin() as session:
        secret = service.sign_in(session, "ada", PASSWORD).secret
    assert secret is not None
    with parts.sessions.begin() as session:
        principal = parts.authenticate(session, cookie=secret, bearer=None)
    assert principal is not None
    return TestClient(
        app,
        base_url=ORIGIN,
        headers={**SAME_SITE, "X-CSRF-Token": principal.csrf_token},
        cookies={cookie_name(parts.settings): secret},
        follow_redirects=False,
    )


@pytest.fixture
def api_client(app: FastAPI, parts: Services, make_user: Callable[..., User]) -> TestClient:
    """A program with a bearer token, which sends no Origin."""
    user = make_user("robot")
    with parts.sessions.begin() as session:
        _, token = service.create_token(session, user.id, "test", days=1)
    return TestClient(app, base_url=ORIGIN, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def first_account() -> Callable[[Session], str]:
    """Make the first account by the real path; returns its session's secret."""

    def make(session: Session) -> str:
        link = service.ensure_setup_link(session)
        assert link is not None
        data = FirstAccount(name="ada", password=PASSWORD, again=PASSWORD)
        return service.make_first_account(session, link, data)

    return make


@pytest.fixture
def count_queries(parts: Services) -> Callable[[Callable[[], object]], int]:
    """Return how many statements a call sends to the database, whoever sends them."""

    def count(call: Callable[[], object]) -> int:
        call()  # the first use of a session or token notes its time
        statements: list[str] = []

        def note(_c: object, _k: object, text: str, *_rest: object) -> None:
            statements.append(text)

        event.listen(parts.engine, "before_cursor_execute", note)
        try:
            call()
        finally:
            event.remove(parts.engine, "before_cursor_execute", note)
        return len(statements)

    return count


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """Log one line a record: structlog's default prints tracebacks with rich, seconds each."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    ensure_assets()
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, app: FastAPI, signed_in: TestClient) -> Iterator[Page]:
    """A signed-in browser; whatever a page complains about fails the test."""
    with serving(app) as address, signed_in_page(browser, address, signed_in) as page:
        yield page
