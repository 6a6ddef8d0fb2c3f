"""Pruning: keeping everything is the identity, and what was silent is not missed."""

from pathlib import Path

import pytest
import torch

from app.specs.checkpoint import PruneSpec, compression
from tests.workers.distill import tiny
from workers.distill.callbacks import Silent
from workers.distill.checkpoints import (
    download_hub,
    import_folder,
    licence_of,
    load_model,
    read_card,
    save_checkpoint,
)
from workers.distill.errors import CheckpointError, HubUnavailableError, PruneError
from workers.distill.students.prune import layers_to_keep, prune

CALIBRATION = [r.input_ids for r in tiny.rendered(tiny.tickets(6))]
IDS = torch.from_numpy(CALIBRATION[0]).long()[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=IDS).logits
    return out


@pytest.mark.parametrize("calibration", [[], CALIBRATION])
@pytest.mark.parametrize("tied", [True, False])
def test_keeping_everything_is_the_identity(calibration: list, *, tied: bool) -> None:
    model = tiny.llama(tied=tied)
    assert torch.equal(logits(prune(model, PruneSpec(), calibration)), logits(model))


def test_a_silent_ffn_channel_head_group_and_stream_channel_are_not_missed() -> None:
    model = tiny.llama(hidden=32, layers=2, heads=4)
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.mlp.down_proj.weight[:, 5] = 0
            layer.mlp.up_proj.weight[5] = 0
            layer.self_attn.o_proj.weight[:, :16] = 0  # both heads of the first group
            layer.self_attn.v_proj.weight[:8] = 0
            layer.self_attn.o_proj.weight[16:] = 0  # the stream's upper half stays empty
            layer.mlp.down_proj.weight[16:] = 0
        model.base_model.embed_tokens.weight[:, 16:] = 0
        # eps weighs differently in a narrower stream; made negligible here.
        model.base_model.embed_tokens.weight.mul_(50)
    small = prune(model, PruneSpec(width=16, ffn_width=95, heads=2, kv_heads=1), CALIBRATION)
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-3, atol=1e-3)


def test_a_layer_that_adds_nothing_is_not_missed() -> None:
    model = tiny.llama(layers=3)
    with torch.no_grad():
        model.base_model.layers[1].self_attn.o_proj.weight.zero_()
        model.base_model.layers[1].mlp.down_proj.weight.zero_()
    torch.testing.assert_close(logits(prune(model, PruneSpec(depth=2))), logits(model))
    assert layers_to_keep(30, 6) == [0, 6, 12, 17, 23, 29]


def test_saved_student_loads_and_its_card_counts(tmp_path: Path) -> None:
    teacher = tiny.llama(hidden=32, layers=4)
    student = prune(teacher, PruneSpec(depth=2, width=16, ffn_width=24, heads=2), CALIBRATION)
    for name, model in (("t", teacher), ("s", student)):
        save_checkpoint(model, tiny.tokenizer(), tmp_path / name)
    assert torch.equal(logits(load_model(tmp_path / "s")), logits(student))
    card = read_card(tmp_path / "s")
    assert (card.depth, card.width, card.ffn_width, card.heads, card.kv_heads) == (2, 16, 24, 2, 2)
    assert card.parameters_total == sum(p.numel() for p in student.parameters())
    assert card.parameters_embedding == 512 * 16
    # per layer: q 16·16, k and v 16·16, o 16·16, three FFN matrices, two norms; then one norm
    assert card.parameters_compute == 2 * (4 * 256 + 3 * 16 * 24 + 32) + 16
    ratio = compression(read_card(tmp_path / "t"), card)
    assert ratio.compute == pytest.approx((4 * (3072 + 9216 + 64) + 32) / card.parameters_compute)
    assert "5–20×" in ratio.sentence


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (PruneSpec(depth=9), "depth 9 is outside 1…2"),
        (PruneSpec(heads=3, kv_heads=2), "cannot share"),
        (PruneSpec(heads=4, kv_heads=1), "more than the teacher's 2 a group"),
        (PruneSpec(width=30), "not a multiple of 4 heads"),
    ],
)
def test_impossible_specs_are_refused(spec: PruneSpec, sentence: str) -> None:
    with pytest.raises(PruneError, match=sentence):
        prune(tiny.llama(), spec)


def test_import_copies_no_code_and_refuses_pickles(tmp_path: Path) -> None:
    save_checkpoint(tiny.llama(), tiny.tokenizer(), tmp_path / "a")
    (tmp_path / "a" / "modeling_evil.py").write_text("raise SystemExit")
    card = import_folder(tmp_path / "a", tmp_path / "b", Silent())
    assert card == read_card(tmp_path / "a")
    assert not (tmp_path / "b" / "modeling_evil.py").exists()
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .* pickle"):
        import_folder(tmp_path / "a", tmp_path / "c", Silent())
    assert not (tmp_path / "c").exists()


def test_a_hub_out_of_reach_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailableError, match=r"could not be reached for a/b .* local folder"):
        download_hub("a/b", "main", None, tmp_path / "x", Silent())
    with pytest.raises(HubUnavailableError, match="Write owner/name"):
        download_hub("a/b/c", "main", None, tmp_path / "x", Silent())
    assert not (tmp_path / "x").exists()


def test_the_licence_is_read_from_the_model_card_or_the_licence_file(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    save_checkpoint(tiny.llama(), tiny.tokenizer(), folder)
    assert licence_of(folder) is None
    (folder / "LICENSE.txt").write_text("\n  Apache License\nVersion 2.0\n")
    assert licence_of(folder) == "Apache License"
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: 'mit'\n---\n# license: no\n")
    assert licence_of(folder) == "mit"
    assert import_folder(folder, tmp_path / "copy", Silent()).licence == "mit"
    (folder / "README.md").write_text("# no front matter\nlicense: other\n---\n")
    assert licence_of(folder) == "Apache License"
