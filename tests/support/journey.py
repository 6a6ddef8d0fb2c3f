"""The journey through all screens in a browser, step by step; the caller looks at each screen."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

JOB = 60_000
"""Milliseconds that one job may take: each starts a Python process that loads torch."""
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
