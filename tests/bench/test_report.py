"""What benches share: bars that say what they mean, and a gradient that is the reference's."""

import json
from pathlib import Path

import pytest
import torch

from bench import gradient_fidelity, report
from workers.distill.losses.dense import dense_bucket
from workers.distill.values import SparseTargets


def test_a_bar_says_whether_it_is_reached_from_its_own_side() -> None:
    assert report.Bar("ratio", 1.15, 1.15).line() == "ratio: 1.15 <= 1.15 reached"
    assert report.Bar("ratio", 1.16, 1.15).line() == "ratio: 1.16 <= 1.15 MISSED"
    assert report.Bar("speed", 2e6, 1e6, at_most=False).line() == "speed: 2e+06 >= 1e+06 reached"
    assert not report.Bar("speed", 9e5, 1e6, at_most=False).reached


def test_figures_are_kept_with_the_machine_they_were_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    asked = report.options("").parse_args(["--save", "--json"])
    report.finish("made", asked, {"ratio": 0.123456}, "table", [report.Bar("ratio", 0.5, 0.4)])
    kept = json.loads((tmp_path / "made.json").read_text())
    assert kept == json.loads(capsys.readouterr().out)
    assert kept["figures"] == {"ratio": 0.1235}
    assert kept["bars"] == [
        {"what": "ratio", "value": 0.5, "limit": 0.4, "at_most": True, "reached": False}
    ]
    assert kept["machine"]["threads"] == 1
    assert kept["machine"]["torch"] == torch.__version__
    assert kept["machine"]["cores"] >= 1


def test_the_peak_of_an_action_is_what_it_adds() -> None:
    size = 96 << 20
    found = report.extra_peak(lambda: torch.ones(size // 4).sum())
    assert size * 0.95 < found < size * 1.3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_bucket_slope_is_that_of_the_reference(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(torch.randn(3, 12, dtype=torch.float64) / temperature, -1)
    top, ids = log_p.topk(4)
    rest = (1 - top.exp().sum(-1)).log()
    targets = SparseTargets(ids, top, rest, temperature)
    dense_bucket(logits, targets).sum().backward()
    q = torch.softmax(logits.detach() / temperature, -1)
    slope = gradient_fidelity._slope(q, targets, slice(None)) / temperature
    assert logits.grad is not None
    torch.testing.assert_close(slope, logits.grad)
