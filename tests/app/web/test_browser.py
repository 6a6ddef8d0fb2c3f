"""The shell in Chromium: htmx under the CSP, injected attributes, live events, 360 px, axe."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from playwright.sync_api import Browser, Page, expect
from sqlalchemy.orm import Session
from starlette.responses import HTMLResponse, Response
from starlette.testclient import TestClient

from app.accounts import service
from app.datasets.queries import uploads_of
from app.events.append import add_points, append
from app.projects import service as projects
from app.projects.schemas import ProjectCreate
from app.web.deps import Services, open_to_all
from app.web.nonce import CSP_NONCE
from app.web.sse import event_stream
from app.web.templating import Shell, environment
from tests.app.conftest import PASSWORD
from tests.support.browser import axe, chromium, ensure_assets, serving

HOSTILE = (
    '<div id="evil" hx-get="/probe/hit" hx-trigger="load">x</div><script>window.ran = 1</script>'
)
pytestmark = pytest.mark.browser

PAGE = """{% extends "base.html" %}
{% block scripts %}<link rel="stylesheet" href="{{ static('vendor/uplot.min.css') }}">
<script nonce="{{ csp_nonce() }}" src="{{ static('vendor/uplot.min.js') }}" defer></script>
<script nonce="{{ csp_nonce() }}" src="{{ static('js/chart.js') }}" type="module"></script>
<script nonce="{{ csp_nonce() }}" src="{{ static('vendor/tus.min.js') }}" defer></script>
<script nonce="{{ csp_nonce() }}" src="{{ static('js/upload.js') }}" type="module"></script>{% endblock %}
{% block main %}{{ ui.page_header("Probe", ("a page of the test",)) }}{{ ui.live_note() }}
<button type="button" id="get" class="btn" hx-get="/probe/part" hx-target="#out">Get</button>
<button type="button" id="post" class="btn" hx-post="/account/tokens" hx-vals='{"name": "x"}' hx-target="#out" hx-swap="textContent">Post</button>
<button type="button" id="fail" class="btn" hx-get="/probe/fail" hx-target="#out">Fail</button>
<div id="out">before</div><div id="text">{{ hostile }}</div><div id="raw">RAW</div>
<div hx-sse:connect="/probe/events" hx-sse:close="done" id="live"></div>
<div id="again" hx-get="/probe/part" hx-trigger="state from:#live" hx-target="#state">-</div><div id="state"></div>
{{ ui.progress(0, 10, "Work", "steps", live=True) }}{{ ui.log([], live=True) }}
{{ ui.chart("loss", "Loss", [{"name": "train/loss", "label": "Loss", "points": [[1, 2.0], [2, 1.5]]}], y="nats") }}
{{ ui.uploader("/api/v1/projects/probe/uploads", {}, ".jsonl") }}
<table class="t"><tbody data-rows>{% for i in range(3) %}<tr data-row><td><a href="#{{ i }}">row {{ i }}</a></td></tr>{% endfor %}</tbody></table>
{% endblock %}"""


class Probe:
    """A page with every shell part; `raw` puts hostile markup in unescaped, as a bug would."""

    def __init__(self, app: FastAPI, stream: str) -> None:
        self.hits: list[str] = []
        self.stream = stream
        for path, endpoint in (
            ("/probe", self.page),
            ("/probe/part", self.part),
            ("/probe/hit", self.hit),
            ("/probe/fail", self.fail),
            ("/probe/events", self.events),
        ):
            app.add_api_route(path, endpoint, dependencies=[open_to_all()], response_model=None)

    def page(self, request: Request, raw: int = 0) -> Response:
        token = request.query_params.get("token", "")
        shell = Shell("ada", token, (), ())
        text = (
            environment()
            .from_string(PAGE)
            .render(
                request=request,
                shell=shell,
                project=None,
                nav=None,
                crumbs=(("Probe", None),),
                page_keys=(),
                hostile=HOSTILE,
            )
        )
        return HTMLResponse(text.replace("RAW", HOSTILE) if raw else text)

    def part(self) -> Response:
        # A second nonce-bearing element proves that the answer's nonce is made the page's.
        nonce = CSP_NONCE.get()
        return HTMLResponse(
            f'after <a hx-nonce="{nonce}" id="next" href="#" hx-get="/probe/hit" hx-target="#out">next</a>{HOSTILE}'
        )

    def hit(self) -> Response:
        self.hits.append("hit")
        return HTMLResponse("hit")

    def fail(self) -> Response:
        raise ZeroDivisionError

    async def events(self, request: Request) -> Response:
        return event_stream(
            request, self.stream, after=0, still_allowed=lambda: True, ends_on=frozenset({"done"})
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    ensure_assets()


@pytest.fixture
def served(app: FastAPI) -> Iterator[str]:
    with serving(app) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(5000)
    yield page
    context.close()


def test_htmx_works_under_the_csp_and_injected_htmx_does_not(
    app: FastAPI, served: str, page: Page
) -> None:
    probe = Probe(app, "run:1")
    page.goto(f"{served}/probe?raw=1")
    page.wait_for_selector("#evil", state="attached")
    page.click("#get")
    page.wait_for_selector("#next")
    page.wait_for_timeout(300)
    assert probe.hits == [], "neither the page's nor the answer's injected element asked"
    assert page.evaluate("window.ran") is None
    page.click("#next")
    expect(page.locator("#out")).to_have_text("hit")
    assert probe.hits == ["hit"]


def test_errors_become_toasts_and_replace_nothing(app: FastAPI, served: str, page: Page) -> None:
    Probe(app, "run:1")
    page.goto(f"{served}/probe")
    page.click("#fail")
    page.wait_for_selector("#toasts .note-bad")
    assert "Something failed on our side" in page.inner_text("#toasts")
    assert page.inner_text("#out") == "before"
    assert page.query_selector("#evil") is None, "escaped content is text"


def test_live_parts_follow_the_stream(
    app: FastAPI, served: str, page: Page, parts: Services
) -> None:
    stream = "run:7"
    Probe(app, stream)

    def write(kind: str, payload: dict[str, object]) -> None:
        with parts.sessions.begin() as session:
            append(session, stream, kind, payload)

    write("log", {"text": "written before the page was opened"})
    page.goto(f"{served}/probe")
    expect(page.locator("[data-live-log]")).to_contain_text("before the page")
    write("progress", {"done": 4, "total": 10, "unit": "steps", "eta_seconds": 30})
    write("log", {"text": HOSTILE})
    write("state", {"state": "running"})
    with parts.sessions.begin() as session:
        _points(session, stream)
    expect(page.locator("[data-progress-text]")).to_contain_text("4 of 10 steps", timeout=9000)
    expect(page.locator("#state")).to_contain_text("after", timeout=9000)
    expect(page.locator("[data-live-log]")).to_contain_text("hx-get")
    page.click("[data-chart-twin]")
    table = page.inner_text("[data-twin]")
    assert "1.2500" in table, "the metric event was appended"
    assert page.query_selector("[data-plot] canvas") is not None


def _points(session: Session, stream: str) -> None:
    add_points(session, stream, job_id=1, fence=1, steps={3: {"train/loss": 1.25}})


def test_a_boosted_post_carries_the_csrf_token(
    app: FastAPI, served: str, page: Page, signed_in: TestClient
) -> None:
    Probe(app, "run:1")
    for cookie in signed_in.cookies.jar:
        page.context.add_cookies([{"name": cookie.name, "value": str(cookie.value), "url": served}])
    page.goto(f"{served}/probe?token={signed_in.headers['X-CSRF-Token']}")
    page.click("#post")
    expect(page.locator("#out")).to_contain_text("API token made")
    page.goto(f"{served}/probe?token=wrong")
    page.click("#post")
    page.wait_for_selector("#toasts .note-bad")
    assert "older sign-in" in page.inner_text("#toasts")


def test_keys_are_off_while_typing(app: FastAPI, served: str, page: Page) -> None:
    Probe(app, "run:1")
    page.goto(f"{served}/probe")
    page.wait_for_selector("[data-plot] canvas")
    for _ in range(2):
        page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "row 1"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == "row 0"
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")
    assert page.evaluate("document.activeElement.textContent") == "row 0", "the focus came back"
    page.goto(f"{served}/sign-in")
    page.fill("#f-name", "")
    page.type("#f-name", "j?k")
    assert page.input_value("#f-name") == "j?k"
    assert not page.is_visible("#keys")


def test_theme_is_kept_and_set_before_paint(served: str, page: Page) -> None:
    page.goto(f"{served}/sign-in")
    theme = "document.documentElement.dataset.bsTheme"
    assert page.evaluate(theme) == "light"
    page.click("[data-theme-toggle]")
    page.click("[data-theme-toggle]")
    assert page.evaluate(theme) == "dark"
    page.reload(wait_until="commit")
    page.wait_for_selector("h1")
    assert page.evaluate(theme) == "dark"
    expect(page.locator("[data-theme-toggle]")).to_have_attribute("aria-label", "Theme: dark")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_first_account_to_account_page_without_serious_findings(
    served: str, page: Page, parts: Services, theme: str
) -> None:
    problems: list[str] = []
    page.add_init_script(f"localStorage.setItem('stillhouse.theme', '{theme}')")
    with parts.sessions.begin() as session:
        secret = service.ensure_setup_link(session)
    page.goto(f"{served}/sign-in")
    assert axe(page) == []
    page.goto(f"{served}/setup/{secret}")
    page.fill("#f-name", "ada")
    page.fill("#f-password", PASSWORD)
    page.fill("#f-again", "something else")
    page.click("button[type=submit]")
    assert "The two passwords differ" in page.inner_text("[data-focus]")
    expect(page.locator("[data-focus]")).to_be_focused()
    assert axe(page) == []
    page.fill("#f-password", PASSWORD)
    page.fill("#f-again", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url("**/projects")
    assert axe(page) == []
    page.goto(f"{served}/account")
    page.fill("form[action='/account/tokens'] #f-name", "ci")
    page.click("text=Make the token")
    page.wait_for_selector(".secret")
    assert axe(page) == []
    page.reload()
    expect(page.locator(".secret")).to_have_count(0)
    expect(page.locator("tbody tr")).to_have_count(1)
    page.set_viewport_size({"width": 360, "height": 760})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("[data-menu]")
    assert page.is_visible("#side .brand")
    assert axe(page) == []
    page.goto(f"{served}/nowhere")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert axe(page) == []
    assert json.dumps(problems) == "[]"


def test_upload_goes_on_after_a_reload(
    app: FastAPI,
    served: str,
    page: Page,
    parts: Services,
    signed_in: TestClient,
    tmp_path: Path,
) -> None:
    Probe(app, "run:1")
    with parts.sessions.begin() as session:
        project = projects.create(session, ProjectCreate(name="probe"), owner_id=None)
    assert project.slug == "probe"
    for cookie in signed_in.cookies.jar:
        page.context.add_cookies([{"name": cookie.name, "value": str(cookie.value), "url": served}])
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.method) if "/uploads" in r.url else None)
    address = f"{served}/probe?token={signed_in.headers['X-CSRF-Token']}"
    file = tmp_path / "calls.jsonl"
    file.write_bytes(b'{"messages": []}\n' * 5000)
    page.goto(address)
    page.route(
        "**/uploads/*", lambda r: r.abort() if r.request.method == "PATCH" else r.continue_()
    )
    page.set_input_files("#upload-files", file)
    page.wait_for_timeout(300)
    expect(page.locator("[data-files] li")).to_have_count(1)
    page.click("[data-files] button")
    expect(page.locator("[data-files]")).to_contain_text("Paused")
    assert asked.count("POST") == 1
    page.unroute("**/uploads/*")
    page.goto(address)
    page.set_input_files("#upload-files", file)
    expect(page.locator("[data-files]")).to_contain_text("83.0 KiB, complete")
    assert asked.count("POST") == 1, "the same upload went on"
    with parts.sessions() as session:
        (upload,) = uploads_of(session, project.id)
    assert upload.filename == "calls.jsonl"
    assert upload.sha256 == sha256(file.read_bytes()).hexdigest()
