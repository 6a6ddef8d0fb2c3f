"""Chromium on the real web program: a server in a thread, accessibility findings, page problems."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.testclient import TestClient

from app.web.templating import STATIC, TEMPLATES
from app.web.vendor import HTMX, ROOT, icons_named, install

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
NARROW = {"width": 360, "height": 760}
WIDE = {"width": 1440, "height": 900}
PATIENCE = 30
"""Tenths of a second that a busy machine has to draw a page in its new width."""
WIDE_PARTS = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const wide = [...document.querySelectorAll("main *, header *")]
    .filter((e) => e.getBoundingClientRect().right > width + 1 && !e.closest(".tw, pre"));
  return wide.slice(0, 5).map((e) => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`);
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGS)
        yield browser
        browser.close()


def ensure_assets() -> None:
    """Install front-end files anew when a template names an icon that is not there."""
    there = {path.stem for path in (STATIC / "vendor" / "icons").glob("*.svg")}
    if not (STATIC / "vendor" / HTMX).is_file() or not icons_named(TEMPLATES) <= there:
        install()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve the app on a free port; yield its address."""
    config = uvicorn.Config(
        app, port=0, log_level="warning", timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def axe(page: Page) -> list[str]:
    """Return serious and critical findings (run outside the page's CSP by the debugger)."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{v['id']}: {n['target']}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
        for n in v["nodes"]
    ]


def wider_than_the_window(page: Page) -> list[str]:
    """Return what makes the page scroll sideways, or nothing; curves take a moment to shrink."""
    for _ in range(PATIENCE):
        found: list[str] = page.evaluate(WIDE_PARTS)
        if not found:
            break
        page.wait_for_timeout(100)
    return found


class Complaints:
    """What a page says on its console, and what its policy refused."""

    def __init__(self, page: Page) -> None:
        self.found: list[str] = []
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) =>"
            " console.error(`CSP: ${e.violatedDirective} ${e.blockedURI}`))"
        )
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"{page.url}: {error}"))

    def _console(self, message: object) -> None:
        if getattr(message, "type", "") in ("error", "warning"):
            self.found.append(f"{message.location['url']}: {message.text}")  # type: ignore[attr-defined] # a ConsoleMessage


@contextmanager
def signed_in_page(
    browser: Browser, address: str, client: TestClient, *, allowed: str | None = None
) -> Iterator[Page]:
    """A browser with a client's session; what a page complains about, but `allowed`, fails the test."""
    context = browser.new_context(
        viewport=WIDE,  # type: ignore[arg-type] # a ViewportSize
        base_url=address,
        reduced_motion="reduce",
    )
    for cookie in client.cookies.jar:
        context.add_cookies([{"name": cookie.name, "value": str(cookie.value), "url": address}])
    page = context.new_page()
    page.set_default_timeout(10_000)
    complaints = Complaints(page)
    yield page
    assert [words for words in complaints.found if allowed is None or allowed not in words] == []
    context.close()


def look(page: Page) -> None:
    """Check what every page owes: nothing serious in light and dark, no sideways scroll."""
    size = page.viewport_size
    assert size is not None
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type] # one of its literals
        assert axe(page) == [], f"{page.url}, {theme}"
    page.set_viewport_size(NARROW)  # type: ignore[arg-type] # a ViewportSize
    assert wider_than_the_window(page) == [], page.url
    page.set_viewport_size(size)
