"""`python -m tests.support.screenshots`: pictures of the screens for docs/screenshots.

Without options the journey is made on a home of its own with a tiny random checkpoint. With
`--home DIR` the pages of a served home are taken (`stillhouse up` runs there), such as the demo's.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Page

from app.accounts import service as accounts
from app.db.migrate import upgrade
from app.db.session import make_engine, make_session_factory, transaction
from app.local.postgres import TEST_OPTIONS, Postgres
from app.local.urls import address_of
from app.local.valkey import Valkey
from app.main import create_app
from app.settings import Settings
from tests.support.browser import NARROW, WIDE, chromium, ensure_assets, serving
from tests.support.journey import Journey, whole_journey
from tests.support.traffic import write_log
from tests.support.workers import working
from tests.workers.distill import tiny
from workers.distill.checkpoints import save_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
LIGHT = ("project", "version", "conversations", "new_run", "run_done", "compare", "evaluation")
DARK = ("run_done", "compare")
PHONE = ("run_done", "compare")


class Shooter:
    """Writes NAME-light.png, NAME-dark.png and NAME-360.png of the screens that are shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, page: Page) -> None:
        for names, theme, size, word in (
            (LIGHT, "light", WIDE, "light"),
            (DARK, "dark", WIDE, "dark"),
            (PHONE, "light", NARROW, "360"),
        ):
            if name not in names:
                continue
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type] # light or dark
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(300)  # charts follow the theme and the width
            page.screenshot(path=self.folder / f"{name.removesuffix('_done')}-{word}.png")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(WIDE)


@contextmanager
def own_home() -> Iterator[Settings]:
    """Settings of a fresh home on servers of its own."""
    with tempfile.TemporaryDirectory(prefix="sh-") as folder:
        postgres = Postgres(Path(folder) / "pg", options=TEST_OPTIONS)
        valkey = Valkey.fresh(Path(folder) / "valkey", durable=False)
        postgres.start()
        try:
            valkey.start()
            upgrade(postgres.url())
            home = Path(folder) / "home"
            yield Settings(home=home, database_url=postgres.url(), redis_url=valkey.url)
        finally:
            valkey.stop()
            postgres.stop()


def of_a_journey(page: Page, look: Shooter) -> None:
    """Make the journey with a tiny random checkpoint and take its screens."""
    with own_home() as settings:
        engine = make_engine(settings.require_database_url())
        factory = make_session_factory(engine)
        with transaction(factory) as session:
            secret = accounts.ensure_setup_link(session)
        log, teacher = settings.home / "traffic.jsonl", settings.home / "teacher"
        save_checkpoint(tiny.llama(layers=4), tiny.tokenizer(), teacher)
        write_log(log, 200)
        with serving(create_app(settings)) as address, working(factory, settings):
            whole_journey(Journey(page, address, look), f"/setup/{secret}", teacher, log)
        engine.dispose()


def of_a_home(page: Page, look: Shooter, home: Path, slug: str | None) -> None:
    """Take the screens of a project of a served home, its newest where none is named."""
    settings = Settings(home=home)
    address = address_of(settings)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    page.set_extra_http_headers(headers)
    with httpx.Client(base_url=address, headers=headers) as client:
        project = slug or client.get("/api/v1/projects").json()[-1]["slug"]
        api = f"/api/v1/projects/{project}"
        version = client.get(f"{api}/versions").json()[0]["id"]
        runs = client.get(f"{api}/runs").json()
        evaluations = client.get(f"{api}/evaluations").json()
    run = next(r["number"] for r in runs if r["role"] == "distilled")
    evaluation = next(e["id"] for e in evaluations if e["role"] == "distilled")
    for name, path in (
        ("project", ""),
        ("version", f"/datasets/{version}"),
        ("conversations", f"/datasets/{version}/conversations?open=0"),
        ("new_run", "/runs/new"),
        ("run_done", f"/runs/{run}"),
        ("compare", "/compare"),
        ("evaluation", f"/evaluations/{evaluation}"),
    ):
        page.goto(f"{address}/projects/{project}{path}")
        look(name, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="a home that is being served")
    parser.add_argument("--project", help="slug of its project; the newest by default")
    parser.add_argument("--out", type=Path, default=FOLDER)
    wanted = parser.parse_args()
    ensure_assets()
    with chromium() as browser:
        context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
        page = context.new_page()
        page.set_default_timeout(10_000)
        look = Shooter(wanted.out)
        if wanted.home is None:
            of_a_journey(page, look)
        else:
            of_a_home(page, look, wanted.home, wanted.project)
        context.close()


if __name__ == "__main__":
    main()
