"""The journey through all screens in a browser, step by step; the caller looks at each screen."""

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.traffic import REFERENCE_PATH

JOB = 120_000
"""Milliseconds that one job may take: each starts a Python process that loads torch."""
STEPS = 8
KNOBS = {
    "steps": str(STEPS),
    "batch_size": "4",
    "snapshot_every": "4",
    "validate_every": "4",
    "max_tokens": "256",
    "max_new_tokens": "8",
}
NAME, PASSWORD = "ada", "correct horse battery"
Look = Callable[[str, Page], None]
"""Called with the screen's name when it is settled."""


class Journey:
    """One person, one browser, one project. Each step leaves the page where the next begins."""

    def __init__(self, page: Page, address: str, look: Look) -> None:
        self.page = page
        self.address = address
        self.look = look
        self.project = f"{address}/projects/tickets"

    def see(self, name: str) -> None:
        self.page.wait_for_load_state("load")
        self.look(name, self.page)

    def open(self, path: str) -> None:
        self.page.goto(self.project + path)

    def press(self, words: str) -> None:
        """Press a button or follow a link of the page's main part."""
        main = self.page.locator("main")
        target = main.get_by_role("button", name=words, exact=True)
        if not target.count():
            target = main.get_by_role("link", name=words, exact=True)
        target.first.click()

    def first_account(self, link: str) -> None:
        page = self.page
        page.goto(self.address + link)
        self.see("setup")
        for field, value in (("name", NAME), ("password", PASSWORD), ("again", PASSWORD)):
            page.fill(f"#f-{field}", value)
        self.press("Make the account")
        page.wait_for_url("**/projects")

    def sign_in(self) -> None:
        page = self.page
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/sign-in*")
        self.see("sign_in")
        page.fill("#f-name", NAME)
        page.fill("#f-password", PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/projects")
        self.see("projects_empty")

    def new_project(self) -> None:
        page = self.page
        page.goto(f"{self.address}/projects/new")
        page.fill("#f-name", "Tickets")
        page.fill("#f-description", "Support tickets to JSON.")
        page.get_by_label("Task specialisation").check()
        page.select_option("#f-deciding_metric", "exact_match")
        page.fill("#f-tolerance", "2")
        self.see("new_project")
        self.press("Make the project")
        page.wait_for_url("**/projects/tickets")
        self.see("project_empty")

    def teacher(self, folder: Path) -> None:
        page = self.page
        self.open("/checkpoints/new")
        self.see("new_checkpoint")
        page.fill("#f-path", str(folder))
        page.fill("#f-name", "teacher")
        page.select_option("#f-role", "teacher")
        self.press("Register the checkpoint")
        expect(page.locator("main .ph")).to_contain_text("ready", timeout=JOB)
        self.see("checkpoint")

    def data(self, log: Path, reference: str) -> None:
        """Upload, preview with the reference column, import, funnel, conversations, freeze."""
        page = self.page
        self.open("/datasets")
        self.see("data_empty")
        self.open("/datasets/new")
        page.set_input_files("#upload-files", log)
        expect(page.locator("#choices")).to_contain_text("What was found", timeout=JOB)
        expect(page.locator("#choices .kv")).to_contain_text("openai chat")
        page.select_option("#f-reference_path", reference)
        self.see("import")
        self.press("Start import")
        expect(page.locator("#version")).to_contain_text("Freeze traffic v1", timeout=JOB)
        self.see("version_draft")
        self.press("Read conversations")
        page.locator("[data-row] a.line").first.click()
        expect(page.locator("#peek")).to_contain_text("assistant")
        self.see("conversations")
        page.keyboard.press("Escape")
        expect(page.locator("#peek")).to_be_hidden()
        self.open("/datasets")
        self.see("data")
        page.get_by_role("link", name="traffic v1").first.click()
        self.press("Freeze traffic v1")
        expect(page.locator("main")).to_contain_text("frozen", timeout=JOB)
        self.see("version")

    def student(self, depth: int) -> None:
        page = self.page
        self.open("/checkpoints/new?way=prune")
        page.fill("#f-depth", str(depth))
        page.fill("#f-name", "student")
        page.check("#f-student")
        expect(page.locator("#gauge")).to_contain_text("smaller in compute")
        self.see("new_student")
        self.press("Make the student")
        expect(page.locator("main .ph")).to_contain_text("ready", timeout=JOB)
        self.open("/checkpoints")
        self.see("checkpoints")

    def preview(self) -> None:
        """Look which tokens are learned, and come back to the form as it was."""
        page = self.page
        self.press("See what is learned")
        expect(page.locator("#preview")).to_contain_text("tokens are learned", timeout=JOB)
        self.see("preview")
        page.get_by_role("link", name="Back to the form").click()
        expect(page.locator("#before")).to_contain_text("Start 3 runs")

    def runs(self, settings: dict[str, str]) -> None:
        """Start the three objectives on one version; `settings` are knobs by name."""
        page = self.page
        self.open("/runs/new")
        for kind in ("Sequence-level", "Labels only"):
            page.get_by_role("checkbox", name=kind).check()
        for fold in page.locator("details.fold").all():
            fold.locator("summary").click()
        for name, value in settings.items():
            page.fill(f"#f-{name}", value)
        expect(page.locator("#before")).to_contain_text("Start 3 runs")
        expect(page.locator("#before")).to_contain_text("What the teacher cache covers")
        self.see("new_run")
        self.preview()
        self.press("Start 3 runs")
        page.wait_for_url("**/runs?group=*")
        page.goto(f"{self.address}/queue")
        self.see("queue")
        self.stop_dialog()

    def stop_dialog(self) -> None:
        """Ask to stop the last job, then let it go on; also where no script runs."""
        page = self.page
        dialog = page.get_by_role("dialog")
        stop = page.get_by_role("link", name=re.compile("^(Stop|Cancel) ")).last
        address = stop.get_attribute("href")
        stop.click()
        expect(dialog).to_contain_text("Jobs that need its result are cancelled with it")
        self.see("stop_dialog")
        dialog.get_by_role("button", name="Let it go on").click()
        expect(dialog).to_have_count(0)
        page.goto(f"{self.address}{address}")
        self.see("stop")
        self.press("Let it go on")
        page.wait_for_url("**/queue")

    def live_run(self, steps: int) -> None:
        """Watch the first run: curves come without a reload and are the same after one."""
        page = self.page
        self.open("/runs/1")
        expect(page.locator("main h1").first).to_contain_text("#1")
        last = self.curve(steps)
        self.see("run")
        page.reload()
        assert self.curve(steps) == last, "a reload keeps the curve"
        expect(page.locator("main .ph")).to_contain_text("succeeded", timeout=3 * JOB)
        expect(page.get_by_role("log")).to_contain_text("Tokenizers")
        self.see("run_done")

    def curve(self, steps: int) -> list[str]:
        """Wait until the first chart has the last step; return its table's rows before that.

        The last step's own row still grows: its validation comes after it.
        """
        chart = self.page.locator("[data-chart]").first
        twin = chart.locator("[data-twin]")
        if not twin.is_visible():
            chart.locator("[data-chart-twin]").click()
        newest = twin.locator("tbody tr").first
        expect(newest.locator("th")).to_have_text(str(steps), timeout=2 * JOB)
        rows = twin.locator("tbody tr").all_inner_texts()
        assert len(rows) == steps, rows
        return rows[1:]  # the newest first

    def all_runs(self) -> None:
        page = self.page
        self.open("/runs")
        done = page.locator("tbody tr").filter(has_text="succeeded")
        for _ in range(3 * JOB // 1000):
            if done.count() == 3:
                break
            page.wait_for_timeout(1000)
            page.reload()
        expect(done).to_have_count(3)
        self.see("runs")

    def comparison(self) -> None:
        """Sort, show what differs, choose another baseline, take the table along as CSV."""
        page = self.page
        self.open("/compare")
        expect(page.locator("#compare .stick tbody tr")).to_have_count(5)
        self.see("compare")
        page.locator("#compare thead").get_by_role("link", name="KL to teacher").click()
        page.wait_for_url("**sort=**")
        differing = page.get_by_role("button", name="Diff only")
        expect(differing).to_have_attribute("aria-pressed", "true")
        differing.click()
        page.wait_for_url("**diff=0**")
        expect(differing).to_have_attribute("aria-pressed", "false")
        page.get_by_role("link", name="Make sequence-level the baseline").click()
        expect(page.locator("#compare tr.base")).to_contain_text("sequence-level")
        page.reload()
        expect(page.locator("#compare tr.base")).to_contain_text("sequence-level")
        self.see("compare_diff")
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        lines = Path(download.value.path()).read_text().splitlines()
        assert len(lines) == 6, lines
        assert "sequence-level" in "".join(lines)

    def report(self) -> None:
        """From a run to its evaluation, with answers side by side."""
        page = self.page
        self.open("/evaluations")
        self.see("evaluations")
        self.open("/runs/1")
        self.press("Open the report")
        page.wait_for_url("**/evaluations/*")
        expect(page.locator("main")).to_contain_text("KL to teacher")
        self.see("evaluation")
        page.get_by_role("link", name="Whole prompt").first.click()
        expect(page.locator("details.whole").first).to_contain_text("Whole prompt: ")
        self.see("prompt")
        self.open("/caches")
        expect(page.locator("main")).to_contain_text("differ from the live teacher by")
        self.see("caches")

    def home(self) -> None:
        """Back to the project, which says what was found, and the list of projects."""
        self.open("")
        expect(self.page.locator("main")).to_contain_text("Compare")
        self.see("project")
        self.open("/edit")
        self.page.fill("#f-tolerance", "3")
        self.see("edit_project")
        self.press("Save the project")
        self.page.wait_for_url("**/projects/tickets")
        expect(self.page.locator("main")).to_contain_text("3 points")
        self.page.goto(f"{self.address}/projects")
        self.see("projects")
        self.page.goto(f"{self.address}/account")
        self.see("account")
        self.open("/runs/99")
        expect(self.page.locator("main")).to_contain_text("99")
        self.see("missing")


def whole_journey(journey: Journey, link: str, teacher: Path, log: Path) -> None:
    """Make every step, from the set-up link to the evaluation report."""
    journey.first_account(link)
    journey.sign_in()
    journey.new_project()
    journey.teacher(teacher)
    journey.data(log, REFERENCE_PATH)
    journey.student(depth=1)
    journey.runs(KNOBS)
    journey.live_run(STEPS)
    journey.all_runs()
    journey.comparison()
    journey.report()
    journey.home()
