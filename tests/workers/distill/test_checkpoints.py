"""Checkpoints: saving whole or not at all, exact cards, pickles and code refused, GGUF, the hub."""

import json
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest
import torch
from huggingface_hub.hf_api import ModelInfo

from tests.workers.distill import tiny
from workers.distill import checkpoints
from workers.distill.callbacks import Silent
from workers.distill.checkpoints import (
    download_hub,
    import_folder,
    load_model,
    read_card,
    save_checkpoint,
)
from workers.distill.errors import (
    CheckpointError,
    DownloadError,
    StoppedError,
    UnsafeWeightsError,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny.make_model(), tiny.make_tokenizer(), tmp_path / "saved")
    return tmp_path / "saved"


def test_saved_is_loaded_bit_for_bit(folder: Path) -> None:
    loaded = load_model(folder)
    assert tiny.same_weights(loaded, tiny.make_model())
    assert not loaded.training
    assert load_model(folder, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_the_card_counts_exactly(tmp_path: Path, tied: bool) -> None:  # noqa: FBT001 - a parameter of the test
    model = tiny.make_model(tied=tied)
    save_checkpoint(model, tiny.make_tokenizer(), tmp_path / "x")
    card = read_card(tmp_path / "x")
    assert card.parameters_total == sum(p.numel() for p in model.parameters())
    assert card.parameters_embedding == 512 * 32 * (1 if tied else 2)
    # a layer: q 32², o 32², k and v 16·32, three FFN matrices 32·64, two norms of 32
    assert card.parameters_compute == 2 * (2 * 1024 + 2 * 512 + 3 * 2048 + 64) + 32
    sizes = (card.depth, card.width, card.ffn_width, card.heads, card.kv_heads, card.vocabulary)
    assert sizes == (2, 32, 64, 4, 2, 512)
    assert (card.eos_token, card.dtype, card.context_length) == ("<|end|>", "float32", 256)


def test_the_fingerprint_names_the_weights(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_checkpoint(tiny.make_model(seed=seed), tiny.make_tokenizer(), tmp_path / name)
        found.append(read_card(tmp_path / name).weights_fingerprint)
    assert found[0] == found[1] != found[2]


def test_a_failed_save_leaves_what_was_there(folder: Path) -> None:
    class Broken:
        def save_pretrained(self, _target: str) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tiny.make_model(seed=9), Broken(), folder)
    assert tiny.same_weights(load_model(folder), tiny.make_model())
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


def test_importing_copies_weights_but_neither_pickles_nor_code(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    card = import_folder(folder, tmp_path / "target")
    names = {p.name for p in (tmp_path / "target").iterdir()}
    assert "model.safetensors" in names
    assert not names & {"training_args.bin", "modeling.py"}
    assert card == read_card(folder)
    assert tiny.same_weights(load_model(tmp_path / "target"), tiny.make_model())


def test_pickles_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for act in (load_model, read_card, lambda f: import_folder(f, tmp_path / "t")):
        with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin is a pickle"):
            act(folder)
    assert not (tmp_path / "t").exists()


def test_a_checkpoints_own_code_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeWeightsError, match="auto_map"):
        load_model(folder)


def test_what_is_no_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        import_folder(tmp_path / "nowhere", tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        import_folder(tmp_path / "empty", tmp_path / "t")
    (folder / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(CheckpointError, match="damaged"):
        read_card(folder)


def test_gguf_becomes_safetensors_with_the_same_logits(tmp_path: Path) -> None:
    source = _write_gguf(tiny.make_model(), tmp_path / "in" / "tiny.gguf")
    card = import_folder(source, tmp_path / "out")
    assert card.parameters_total == sum(p.numel() for p in tiny.make_model().parameters())
    loaded = load_model(tmp_path / "out")
    ids = tiny.some_ids()
    torch.testing.assert_close(tiny.logits(loaded, ids), tiny.logits(tiny.make_model(), ids))
    assert not list((tmp_path / "out").glob("*.gguf"))
    from_folder = import_folder(source.parent, tmp_path / "again")
    assert from_folder.weights_fingerprint == card.weights_fingerprint


def _write_gguf(model: Any, path: Path) -> Path:
    """Write a tied llama as GGUF (F32), q and k rows permuted as llama.cpp stores them."""
    path.parent.mkdir()
    config, backend = model.config, json.loads(tiny.make_tokenizer().backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(backend["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([t for t, _ in vocabulary])
    writer.add_token_types([3 if i < 4 else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(m) for m in backend["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_chat_template(tiny.TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = value
        for part, count in heads.items():
            if part in name:
                shape = (count, 2, value.shape[0] // count // 2, value.shape[1])
                weight = value.reshape(shape).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Hub:
    """A hub of one repository, served from a folder; `broken` fails after that many files."""

    def __init__(self, folder: Path, broken: int | None = None) -> None:
        self.folder, self.broken = folder, broken
        self.fetched: list[str] = []

    def model_info(self, repo_id: str, **_more: Any) -> ModelInfo:
        siblings = [{"rfilename": p.name, "size": p.stat().st_size} for p in self.folder.iterdir()]
        return ModelInfo(id=repo_id, sha="c0ffee", siblings=siblings)

    def download(self, _repo_id: str, name: str, *, local_dir: Path, **more: Any) -> None:
        assert more["revision"] == "c0ffee", "a download stays at one commit"
        if self.broken is not None and len(self.fetched) >= self.broken:
            raise httpx.ConnectError("cut")
        self.fetched.append(name)
        (local_dir / name).write_bytes((self.folder / name).read_bytes())


def _serve(monkeypatch: pytest.MonkeyPatch, hub: _Hub) -> None:
    monkeypatch.setattr(checkpoints, "HfApi", lambda: hub)
    monkeypatch.setattr(checkpoints, "hf_hub_download", hub.download)


def test_a_download_fetches_only_what_is_safe_and_goes_on_after_a_cut(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub = _Hub(folder, broken=2)
    _serve(monkeypatch, hub)
    target = tmp_path / "hub"
    with pytest.raises(DownloadError, match="may be offline"):
        download_hub("a/b", "main", None, target, Silent())
    assert not target.exists()
    hub.broken = None
    card = download_hub("a/b", "main", None, target, Silent())
    assert "pytorch_model.bin" not in hub.fetched
    assert card == read_card(folder)
    assert not (tmp_path / ".hub.download").exists()


def test_downloads_name_what_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub(folder)
    _serve(monkeypatch, hub)
    stopping = Silent()
    stopping.stop = True
    with pytest.raises(StoppedError, match="resumed"):
        download_hub("a/b", "main", None, tmp_path / "t", stopping)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeWeightsError, match="no safetensors"):
        download_hub("a/b", "main", None, tmp_path / "t", Silent())
