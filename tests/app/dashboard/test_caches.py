"""The page of teacher caches: what they hold, who reads them, removing one."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.jobs.models import Job
from app.projects.models import Project
from app.runs import service as runs
from app.specs.checkpoint import CheckpointCard
from app.specs.jobs import JobState, PrecomputeJob
from app.specs.teacher import CacheReport
from app.storage.blobs import LocalBlobs
from app.teacher_cache import service
from app.teacher_cache.models import CacheCoverage, CacheEntry, CacheShard, CacheSpaceRow
from app.web.deps import Services
from tests.app.dashboard.conftest import Workshop

REPORT = CacheReport(
    entries=20,
    rows=2_000,
    new_entries=20,
    new_rows=2_000,
    bytes=126_000,
    seconds=3,
    captured_mass={"1": 0.91, "2": 0.31},
    mean_entropy=1.25,
)


def fill(parts: Services, workshop: Workshop, number: int, report: CacheReport = REPORT) -> str:
    """Carry out the capture of a run: one shard of twenty entries with 100 rows each."""
    job_id = workshop.bring(number, "precompute", JobState.SUCCEEDED)
    with parts.sessions.begin() as session:
        job = PrecomputeJob.model_validate(session.get_one(Job, job_id).spec)
        teacher = session.get_one(Checkpoint, job.teacher_id)
        space = service.space_of(CheckpointCard.model_validate(teacher.card), job.profile)
        service.open_space(session, space, teacher_id=job.teacher_id)
        if report.new_rows:
            blob = f"{service.FOLDER}/{space.address}/{'e' * 64}"
            path = LocalBlobs(parts.settings.blobs).path(blob)
            path.parent.mkdir(parents=True)
            path.write_bytes(b"rows")
            shard = CacheShard(
                space=space.address, sha256="e" * 64, blob=blob, bytes=126_000, rows=2_000, fence=1
            )
            session.add(shard)
            session.flush()
            session.add_all(
                CacheEntry(
                    space=space.address, entry=f"{n:064x}", shard_id=shard.id, position=n, rows=100
                )
                for n in range(20)
            )
        service.captured(session, space.address, job, REPORT)
        row = session.get_one(Job, job_id)
        row.result = {"address": space.address, "report": report.model_dump(mode="json")}
    return space.address


def test_what_a_cache_holds_and_who_reads_it(
    pages: TestClient, workshop: Workshop, parts: Services, api_client: TestClient
) -> None:
    first, second = workshop.start("first"), workshop.start("second")
    address = fill(parts, workshop, first)
    third = workshop.start("third")
    fill(parts, workshop, third, REPORT.model_copy(update={"new_entries": 0, "new_rows": 0}))

    text = pages.get("/projects/support-router/caches").text

    for said in ("63.0 bytes a token", "91.0 % at T = 1", "31.0 % at T = 2", "1.25 nats", "67 %"):
        assert said in text
    for number, name in ((first, "first"), (second, "second"), (third, "third")):
        assert f"#{number} {name}</a>" in text
    assert "20 of 20 conversations" in text

    [out] = api_client.get("/api/v1/projects/support-router/caches").json()
    assert out["address"] == address
    assert (out["rows"], out["bytes"]) == (2_000, 126_000)
    assert out["hit_rate"] == pytest.approx(2 / 3), "three runs asked, one scored"
    assert out["runs"] == [third, second, first]
    assert out["report"]["captured_mass"] == REPORT.captured_mass


def test_queries_do_not_grow_with_caches(
    pages: TestClient, workshop: Workshop, parts: Services, count_queries: Callable[..., Any]
) -> None:
    def visit() -> None:
        assert pages.get("/projects/support-router/caches").status_code == 200

    fill(parts, workshop, workshop.start("one"))
    before = count_queries(visit)
    with parts.sessions.begin() as session:
        row = session.scalars(select(CacheSpaceRow)).one()
        for n in range(10):
            spec = {**row.spec, "profile": {**row.spec["profile"], "k_max": 40 + n}}
            session.add(CacheSpaceRow(address=f"{n:064x}", spec=spec, teacher_id=row.teacher_id))
    assert count_queries(visit) == before


def test_a_cache_that_a_job_uses_stays(
    pages: TestClient, workshop: Workshop, parts: Services, api_client: TestClient
) -> None:
    number = workshop.start("first")
    address = fill(parts, workshop, number)
    refused = api_client.delete(f"/api/v1/projects/support-router/caches/{address}")
    assert refused.status_code == 409
    assert "Train #1 first" in refused.text

    workshop.succeed(number)
    folder = parts.settings.blobs / service.FOLDER / address
    assert folder.is_dir()
    assert api_client.delete(f"/api/v1/projects/support-router/caches/{address}").status_code == 204
    assert not folder.exists()
    with parts.sessions.begin() as session:
        for table in (CacheSpaceRow, CacheShard, CacheEntry, CacheCoverage):
            assert session.scalars(select(table)).all() == []
    assert "Nothing cached yet" in pages.get("/projects/support-router/caches").text
    assert api_client.delete(f"/api/v1/projects/support-router/caches/{address}").status_code == 404


def test_a_lost_shard_counts_as_missing_and_is_captured_by_the_next_try(
    workshop: Workshop, parts: Services
) -> None:
    number = workshop.start("first")
    address = fill(parts, workshop, number)
    workshop.bring(number, "train", JobState.FAILED, error="CorruptShardError")
    with parts.sessions.begin() as session:
        service.drop_shard(session, address, "e" * 64)
        row = session.scalars(select(CacheCoverage)).one()
        session.refresh(row)
        assert (row.cached, row.missing_rows) == (0, 2_000)
        project = session.get_one(Project, workshop.project_id)
        again = runs.retry(session, runs.get(session, project, number), owner="ada")
        assert [job.kind for job in again][:2] == ["precompute", "train"]


def test_files_without_a_row_go_when_nothing_can_read_them(
    workshop: Workshop, parts: Services
) -> None:
    address = fill(parts, workshop, workshop.start("first"))
    folder = parts.settings.blobs / service.FOLDER / address
    old, fresh = folder / ("a" * 64), folder / ("b" * 64)
    for path in (old, fresh):
        path.write_bytes(b"left")
    long_ago = time.time() - service.UNNAMED_SECONDS - 60
    for path in (old, folder / ("e" * 64)):
        os.utime(path, (long_ago, long_ago))
    with parts.sessions.begin() as session:
        service.sweep(session, parts.settings)
    assert sorted(path.name[0] for path in folder.iterdir()) == ["b", "e"]


def test_a_shard_that_nothing_is_read_from_is_swept(
    parts: Services, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of entries that two workers scored the first rows count: the second shard is for nothing."""
    address = fill(parts, workshop, workshop.start("first"))
    monkeypatch.setattr(service, "UNNAMED_SECONDS", -1)
    with parts.sessions.begin() as session:
        blob = f"{service.FOLDER}/{address}/{'d' * 64}"
        twin = LocalBlobs(parts.settings.blobs).path(blob)
        twin.write_bytes(b"rows")
        session.add(
            CacheShard(space=address, sha256="d" * 64, blob=blob, bytes=9, rows=2_000, fence=2)
        )
    with parts.sessions.begin() as session:
        service.sweep(session, parts.settings)
        assert [s.sha256 for s in session.scalars(select(CacheShard))] == ["e" * 64]
    assert not twin.exists()
