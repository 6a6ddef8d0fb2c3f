"""A hub repository is downloaded: revision, token, bytes as progress, on from where it was cut."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import COMMIT, hub_of
from tests.workers.distill import tiny
from workers.distill import checkpoints
from workers.distill.callbacks import Silent
from workers.distill.checkpoints import download_hub, import_folder, save_checkpoint
from workers.distill.errors import HubUnavailableError


class Recorder(Silent):
    """Callbacks that keep the progress."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, unit: str) -> None:
        self.seen.append((done, total, unit))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "big"
    save_checkpoint(tiny.llama(hidden=64, layers=4), tiny.tokenizer(), folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pause before the client tries again; every chunk is reported."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16_384)
    monkeypatch.setattr(checkpoints, "_REPORT_SECONDS", 0.0)
    yield


def test_a_repository_is_fetched_with_its_token_and_becomes_a_card(
    source: Path, tmp_path: Path
) -> None:
    with hub_of(source, token="hf_canary") as hub:
        calls = Recorder()
        assert (
            download_hub(
                "owner/big", "v2", "hf_canary", tmp_path / "x", calls, endpoint=hub.address
            )
            == COMMIT
        )
        assert any("/revision/v2" in request for request in hub.asked)
        assert not any("evil" in request or ".bin" in request for request in hub.asked)
        with pytest.raises(
            HubUnavailableError, match=r"Check the name, the revision and the token"
        ):
            download_hub("owner/big", "v2", None, tmp_path / "y", Silent(), endpoint=hub.address)
        with pytest.raises(HubUnavailableError, match="refused owner/none"):
            download_hub(
                "owner/none", "main", "hf_canary", tmp_path / "z", Silent(), endpoint=hub.address
            )
    done = [seen[0] for seen in calls.seen]
    total = calls.seen[-1][1]
    assert done == sorted(done)
    assert done[-1] == total == sum(p.stat().st_size for p in (tmp_path / "x").iterdir())
    assert sum(0 < d < total for d in done) > 5, "bytes within the weights are reported"
    card = import_folder(tmp_path / "x", tmp_path / "copy", Silent())
    assert (card.depth, card.licence) == (4, "apache-2.0")


def test_a_cut_download_goes_on_from_where_it_was(source: Path, tmp_path: Path) -> None:
    with hub_of(source, cut_after=100_000) as hub:
        calls = Recorder()
        download_hub("owner/big", "main", None, tmp_path / "x", calls, endpoint=hub.address)
        assert hub.ranges, "the second request asks for the rest"
    assert int(hub.ranges[0].removeprefix("bytes=").rstrip("-")) > 0
    weights = "model.safetensors"
    assert (tmp_path / "x" / weights).read_bytes() == (source / weights).read_bytes()
    assert calls.seen[-1][0] == calls.seen[-1][1]


def test_the_next_try_goes_on_with_what_the_last_one_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("cut")

    with hub_of(source) as hub:
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.file_download.http_get", broken)
            with pytest.raises(HubUnavailableError, match="could not be reached"):
                download_hub("owner/big", "main", None, target, Silent(), endpoint=hub.address)
        download_hub("owner/big", "main", None, target, Silent(), endpoint=hub.address)
        fetched = [request for request in hub.asked if request.startswith("GET /owner")]
        download_hub("owner/big", "main", None, target, Silent(), endpoint=hub.address)
        again = [request for request in hub.asked if request.startswith("GET /owner")]
    assert fetched
    assert len(again) == len(fetched), "finished files are not fetched again"
