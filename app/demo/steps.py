"""The demo's steps: ordinary requests to an installation; what is there already is reused."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.client.rest import PREFIX, Api
from app.client.uploads import upload_file
from app.client.waiting import wait_for_job, wait_for_run
from app.demo.base import base_source
from app.demo.dirt import write_traffic_log
from app.demo.setting import REFERENCE_PATH, DemoSetting
from app.demo.traffic import DrawnTickets, draw, write_prompts, write_tuning
from app.metrics.formatting import compression, number
from app.specs.checkpoint import CheckpointCard
from app.specs.checkpoint import compression as compression_of
from app.specs.fingerprint import fingerprint

GROUP = "students"
BASE, TUNED, STUDENT = "base", "tuned teacher", "student"
TUNING, TRAFFIC = "tuning", "traffic"
Row = dict[str, Any]


class StepFailed(Exception):
    """A step's job failed; the sentence is the job's own."""


class Report(Protocol):
    """Who is told how far the demo is."""

    def begin(self, place: int, count: int, title: str) -> None: ...
    def moved(self, found: Mapping[str, Any]) -> None:
        """Take a job or run as the API gives it."""

    def ended(self, note: str) -> None: ...


@dataclass
class Demo:
    """One setting on one installation. `folder` keeps the files that are sent."""

    api: Api
    setting: DemoSetting
    folder: Path
    report: Report
    project: str = ""
    reused: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tickets: DrawnTickets = draw(self.setting.tickets)

    def carry_out(self) -> Row:
        """Do what is missing, step by step, and return the comparison. Raises StepFailed."""
        for place, (title, step) in enumerate(STEPS, start=1):
            self.reused = True
            self.report.begin(place, len(STEPS), title)
            note = step(self)
            self.report.ended(f"{note} (there already)" if self.reused else note)
        found: Row = self.get("/comparison", {"group": GROUP})
        return found

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        return self.api.get(f"/projects/{self.project}{path}", params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        self.reused = False
        return self.api.post(f"/projects/{self.project}{path}", body)

    def finish_job(self, job_id: int) -> None:
        """Wait for a job. Raises StepFailed."""
        self.reused = False
        _succeeded(wait_for_job(self.api, job_id, self.report.moved))

    def finish_run(self, name: str) -> Row:
        """Wait for a run, trying again one that failed before. Raises StepFailed."""
        run = self.run_named(name)
        if run["state"] in ("failed", "cancelled"):
            run = self.post(f"/runs/{run['number']}/retry")
        if run["state"] != "succeeded":
            self.reused = False
            run = wait_for_run(self.api, self.project, run["number"], self.report.moved)
        return _succeeded(run)

    def run_named(self, name: str) -> Row:
        return next(run for run in self.get("/runs") if run["name"] == name)

    def start_run(self, body: Mapping[str, Any]) -> None:
        """Start a run unless there is one of its name."""
        if not any(run["name"] == body["name"] for run in self.get("/runs")):
            self.post("/runs", body)

    def send(self, path: Path) -> Row:
        """Upload a file; one that is stored already is not sent again."""
        return upload_file(self.api, self.project, path)

    def checkpoint(self, name: str) -> Row | None:
        return next((row for row in self.get("/checkpoints") if row["name"] == name), None)

    def ready_checkpoint(self, name: str, ask: Callable[[], Row]) -> Row:
        """Return a checkpoint once it is ready, asking for it when there is none."""
        row = self.checkpoint(name) or ask()
        if row["state"] == "failed":
            self.finish_job(self.api.post(f"/jobs/{row['job_id']}/retry")["id"])
        elif row["state"] != "ready":
            self.finish_job(row["job_id"])
        made = self.checkpoint(name)
        if made is None or made["state"] != "ready":
            raise StepFailed(f"The checkpoint “{name}” was removed while the demo ran.")
        return made

    def frozen_version(self, dataset: str, path: Path, options: Mapping[str, Any]) -> Row:
        """Return a dataset's frozen version, importing and freezing what is missing."""
        found = [v for v in self.get("/versions") if v["dataset_name"] == dataset]
        alive = [v for v in found if v["state"] != "failed"]
        version: Row = max(alive, key=lambda v: int(v["number"]), default={})
        if not version:
            upload = self.send(path)
            body = {"dataset": dataset, "upload_ids": [upload["id"]], **options}
            version = self.post("/imports", body)
        if version["state"] == "importing":
            self.finish_job(version["job_id"])
            version = self.get(f"/versions/{version['id']}")
        if version["state"] == "draft":
            version = self.post(f"/versions/{version['id']}/freeze")
            self.finish_job(version["job_id"])
            version = self.get(f"/versions/{version['id']}")
        return version


def _succeeded(found: Row) -> Row:
    if found["state"] == "succeeded":
        return found
    title = found.get("title") or f"Run #{found['number']} {found['name']}"
    raise StepFailed(f"“{title}” {found['state']}: {found.get('message') or 'it says no more.'}")


def make_project(demo: Demo) -> str:
    """Find the project of exactly this setting by its description, or make it."""
    mark = f"setting {fingerprint(demo.setting)[:12]}"
    name = "Tickets to JSON" if demo.setting.name == "real" else "Tickets to JSON, quick"
    known = demo.api.get("/projects", {"search": name})
    found = [row for row in known if row["description"].endswith(mark)]
    if found:
        demo.project = found[0]["slug"]
    else:
        demo.reused = False
        what = f"Made by stillhouse demo: support tickets become one JSON object; {mark}"
        made = demo.api.post("/projects", {"name": name, "description": what})
        demo.project = made["slug"]
    return f"project {demo.project}"


def register_base(demo: Demo) -> str:
    texts = [m.content for ticket in demo.tickets.tune for m in ticket.messages]

    def ask() -> Row:
        source = base_source(demo.setting, demo.folder, texts)
        body = {"name": BASE, "source": {"kind": "folder", "path": str(source)}}
        made: Row = demo.post("/checkpoints", body)
        return made

    card = CheckpointCard.model_validate(demo.ready_checkpoint(BASE, ask)["card"])
    return f"{number(card.parameters_total)} parameters, {card.depth} layers"


def import_tuning(demo: Demo) -> str:
    path = demo.folder / "tuning.jsonl"
    write_tuning(path, demo.tickets.tune)
    shares = {"validation_share": demo.setting.tuning_validation_share, "test_share": 0}
    version = demo.frozen_version(TUNING, path, shares)
    return f"{number(version['funnel']['conversations'])} tickets with their answer"


def tune_teacher(demo: Demo) -> str:
    # It is judged on what it was not tuned on; a reference column it has none.
    change = {"split": "validation", "truth": "logged"}
    evaluation = demo.setting.evaluation.model_copy(update=change)
    demo.start_run(
        {
            "name": TUNED,
            "role": "fine_tune",
            "teacher": None,
            "student": BASE,
            "dataset": TUNING,
            "training": demo.setting.tuning.model_dump(mode="json"),
            "evaluation": evaluation.model_dump(mode="json"),
        }
    )
    run = demo.finish_run(TUNED)
    return f"run #{run['number']}, {demo.setting.tuning.schedule.steps} steps"


def answer_prompts(demo: Demo) -> str:
    """Let the tuned teacher answer the traffic's prompts; keep its answers beside the home."""
    path = demo.folder / "prompts.jsonl"
    write_prompts(path, demo.tickets.traffic)
    wanted = f"{path.stem}-answers.jsonl"
    made = next(
        (
            upload
            for upload in demo.get("/uploads")
            if upload["filename"] == wanted and upload["state"] != "failed"
        ),
        None,
    )
    if made is None:
        body = {
            "checkpoint": demo.run_named(TUNED)["checkpoint_id"],
            "prompts_upload_id": demo.send(path)["id"],
            "max_new_tokens": demo.setting.evaluation.max_new_tokens,
            "batch_size": demo.setting.generate_batch_size,
        }
        made = demo.post("/generations", body)
    if made["state"] == "uploading":
        demo.finish_job(made["job_id"])
    address = f"{PREFIX}/projects/{demo.project}/uploads/{made['key']}/content"
    (demo.folder / wanted).write_bytes(demo.api.send("GET", address).content)
    return f"{number(len(demo.tickets.traffic))} answers"


def import_traffic(demo: Demo) -> str:
    """Write the answers as the log they would have left, dirt and all, and import it."""
    answers = (demo.folder / "prompts-answers.jsonl").read_text().splitlines()
    path = demo.folder / "traffic.jsonl"
    write_traffic_log(path, map(json.loads, answers), demo.tickets.references)
    plan = demo.setting.tickets
    options = {
        "reference_path": REFERENCE_PATH,
        "validation_share": plan.validation_share,
        "test_share": plan.test_share,
    }
    funnel = demo.frozen_version(TRAFFIC, path, options)["funnel"]
    lost = funnel["duplicates"] + sum(funnel["skipped"].values())
    lost += sum(funnel["quarantined"].values())
    return (
        f"{number(funnel['records'])} records, {number(lost)} of them unusable or doubled; "
        f"{number(funnel['conversations'])} conversations, {number(funnel['references'])} "
        "with a reference"
    )


def cut_student(demo: Demo) -> str:
    teacher = demo.run_named(TUNED)["checkpoint_id"]

    def ask() -> Row:
        version = next(v for v in demo.get("/versions") if v["dataset_name"] == TRAFFIC)
        body = {
            "name": STUDENT,
            "teacher_id": teacher,
            "dataset_version_id": version["id"],
            "prune": demo.setting.student.model_dump(mode="json", exclude_none=True),
        }
        made: Row = demo.post("/checkpoints/students", body)
        return made

    student = demo.ready_checkpoint(STUDENT, ask)
    project = demo.api.get(f"/projects/{demo.project}")
    if project["student_id"] != student["id"]:
        changed = {**project, "teacher_id": teacher, "student_id": student["id"]}
        demo.api.put(f"/projects/{demo.project}", changed)
    cards = [
        CheckpointCard.model_validate(demo.get(f"/checkpoints/{id_}")["card"])
        for id_ in (teacher, student["id"])
    ]
    smaller = compression_of(*cards)
    if smaller is None:
        return "sizes not known"
    return (
        f"{compression(smaller.compute)} less compute per token, "
        f"{compression(smaller.total)} fewer parameters"
    )


def start_students(demo: Demo) -> str:
    """Start the runs of the group; the one that needs the teacher's rows fills the cache first."""
    for role, training in demo.setting.runs.items():
        demo.start_run(
            {
                "name": role.replace("_", " "),
                "group": GROUP,
                "teacher": demo.run_named(TUNED)["checkpoint_id"],
                "student": STUDENT,
                "dataset": TRAFFIC,
                "training": training.model_dump(mode="json"),
                "capture": demo.setting.capture.model_dump(mode="json"),
                "evaluation": demo.setting.evaluation.model_dump(mode="json"),
            }
        )
    steps = {training.schedule.steps for training in demo.setting.runs.values()}
    return f"{len(demo.setting.runs)} runs of {max(steps)} steps"


def finish_distilled(demo: Demo) -> str:
    return f"run #{demo.finish_run('distilled')['number']}"


def finish_sequence_level(demo: Demo) -> str:
    return f"run #{demo.finish_run('sequence level')['number']}"


def finish_labels_only(demo: Demo) -> str:
    return f"run #{demo.finish_run('labels only')['number']}"


def finish_evaluations(demo: Demo) -> str:
    """Wait for the rows that no run waits for: the teacher and the undistilled student."""
    pending = [row for row in demo.get("/evaluations") if row["state"] == "pending"]
    for row in pending:
        demo.finish_job(row["job_id"])
    rows = demo.get("/comparison", {"group": GROUP})["rows"]
    return f"{len(rows)} rows on one test set"


STEPS: tuple[tuple[str, Callable[[Demo], str]], ...] = (
    ("Make the project", make_project),
    ("Register the base checkpoint", register_base),
    ("Import the tickets to tune on", import_tuning),
    ("Fine-tune the teacher on the task", tune_teacher),
    ("Let the teacher answer the traffic", answer_prompts),
    ("Import the production log and freeze it", import_traffic),
    ("Cut a student out of the teacher", cut_student),
    ("Start the three runs", start_students),
    ("Distilled on the whole traffic", finish_distilled),
    ("Sequence-level on the whole traffic", finish_sequence_level),
    ("Labels only, where there is a reference", finish_labels_only),
    ("Evaluate teacher and undistilled student", finish_evaluations),
)
