"""What the import page chooses by itself: never a dataset that nobody named and that may not fit."""

import re

from starlette.testclient import TestClient

from app.datasets import service
from app.datasets.models import DatasetVersion
from app.jobs.models import Job
from app.specs.jobs import JobState
from tests.app.datasets.made import Made, finish

HOME = "/projects/routing/datasets"


def chosen(client: TestClient, query: str = "") -> tuple[str | None, str | None]:
    """Return the dataset chosen ("*" is a new one; None where there is no choice) and the name."""
    text = client.get(f"{HOME}/new{query}").text
    into = re.search(r'<option value="([^"]*)" selected>(?:A new|[^<]*becomes)', text)
    name = re.search(r'id="f-name"[^>]* value="([^"]*)"', text)
    return into and into[1], name and name[1]


def fail(made: Made, version_id: int) -> None:
    with made.session() as (session, _):
        job = session.get_one(Job, session.get_one(DatasetVersion, version_id).job_id)
        finish(session, job, JobState.FAILED, "The worker was lost.")


def test_a_first_dataset_is_called_like_its_file(signed_in: TestClient, made: Made) -> None:
    assert chosen(signed_in) == (None, None)
    made.upload(name="tickets-2026.jsonl.gz")
    assert chosen(signed_in) == (None, "tickets-2026")


def test_a_file_on_its_way_names_it_already(signed_in: TestClient, made: Made) -> None:
    with made.session() as (session, project):
        service.start_upload(
            session, project, filename="tickets.jsonl", size=9, settings=made.settings
        )
    assert chosen(signed_in) == (None, "tickets")


def test_one_usable_dataset_is_chosen_and_a_failed_one_is_not(
    signed_in: TestClient, made: Made
) -> None:
    fail(made, made.importing())
    made.upload(name="log.jsonl")
    assert chosen(signed_in) == ("*", "log")
    assert "none of its versions has conversations" in signed_in.get(f"{HOME}/new").text
    made.version(dataset="tickets")
    assert chosen(signed_in) == ("tickets", None)


def test_among_several_none_is_chosen_unless_the_address_names_it(
    signed_in: TestClient, made: Made
) -> None:
    old = made.version(dataset="tickets")
    made.version(dataset="log")
    made.upload(name="log.jsonl")
    assert chosen(signed_in) == ("*", "log-2"), "a new dataset has a name of its own"
    assert chosen(signed_in, "?into=tickets") == ("tickets", None)
    assert chosen(signed_in, f"?again={old}") == ("tickets", None)


def test_a_new_dataset_takes_no_name_that_is_there(signed_in: TestClient, made: Made) -> None:
    made.version(dataset="tickets")
    upload = made.upload()
    form = {"upload_ids": upload, "known_ids": upload, "into": "*", "name": " tickets "}
    answer = signed_in.post(HOME, data=form)
    assert answer.status_code == 422
    assert "“tickets” is there already" in answer.text
    assert signed_in.post(HOME, data={**form, "into": "tickets"}).status_code == 303
