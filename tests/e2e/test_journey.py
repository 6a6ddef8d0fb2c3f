"""The whole journey in Chromium: from the set-up link to the compare table, on real workers."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from jinja2 import Environment, Template
from playwright.sync_api import Page

from app.accounts import service as accounts
from app.db.session import make_engine, make_session_factory, transaction
from app.main import create_app
from app.settings import Settings
from app.web.templating import KIT, TEMPLATES
from tests.support.browser import (
    NARROW,
    WIDE,
    Complaints,
    axe,
    chromium,
    ensure_assets,
    serving,
    wider_than_the_window,
)
from tests.support.journey import Journey, whole_journey
from tests.support.traffic import write_log
from tests.support.workers import Factory, working
from tests.workers.distill import tiny
from workers.distill.checkpoints import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.browser]
THEMES = ("light", "dark")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Only warnings: a browser asks for hundreds of files."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.reset_defaults()


@pytest.fixture
def own_settings(settings: Settings, own_database: str) -> Settings:
    return settings.model_copy(update={"database_url": own_database, "heartbeat_seconds": 1.0})


@pytest.fixture
def factory(own_settings: Settings) -> Iterator[Factory]:
    engine = make_engine(own_settings.require_database_url())
    yield make_session_factory(engine)
    engine.dispose()


@pytest.fixture
def served(own_settings: Settings) -> Iterator[str]:
    ensure_assets()
    with serving(create_app(own_settings)) as address:
        yield address


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as browser:
        # Without motion no colour is measured halfway through a change of theme.
        context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
        page = context.new_page()
        page.set_default_timeout(10_000)
        yield page
        context.close()


class Inspector:
    """Looks at every screen: accessibility in both themes, and no sideways scroll when narrow."""

    def __init__(self) -> None:
        self.screens: list[str] = []
        self.problems: list[str] = []

    def __call__(self, name: str, page: Page) -> None:
        self.screens.append(name)
        for theme in THEMES:
            page.evaluate(f"document.documentElement.dataset.bsTheme = '{theme}'")
            self.problems += [f"{name}, {theme}: {found}" for found in axe(page)]
        page.evaluate("document.documentElement.dataset.bsTheme = 'light'")
        page.set_viewport_size(NARROW)
        self.problems += [f"{name}, 360 px: {found}" for found in wider_than_the_window(page)]
        page.set_viewport_size(WIDE)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the templates that were asked for."""
    names: set[str] = set()
    real = Environment.get_template

    def noted(environment: Environment, name: str, *args: Any, **kwargs: Any) -> Template:
        names.add(name)
        return real(environment, name, *args, **kwargs)

    monkeypatch.setattr(Environment, "get_template", noted)
    return names


def test_from_the_setup_link_to_the_comparison(
    shown: set[str],
    served: str,
    page: Page,
    factory: Factory,
    own_settings: Settings,
    tmp_path: Path,
) -> None:
    log, teacher = tmp_path / "traffic.jsonl", tmp_path / "teacher"
    write_log(log, 200)
    save_checkpoint(tiny.llama(layers=4), tiny.tokenizer(), teacher)
    with transaction(factory) as session:
        secret = accounts.ensure_setup_link(session)

    complaints, inspector = Complaints(page), Inspector()
    journey = Journey(page, served, inspector)
    with working(factory, own_settings):
        whole_journey(journey, f"/setup/{secret}", teacher, log)
    missing = f"{served}/projects/tickets/runs/99: "
    unexpected = [words for words in complaints.found if not words.startswith(missing)]
    assert not unexpected, "\n".join(unexpected)
    assert not inspector.problems, "\n".join(inspector.problems)
    pages = {path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.html")}
    unseen = {name for name in pages - shown if not name.startswith(f"{KIT}/")}
    assert not unseen, "screens that the journey does not visit"
