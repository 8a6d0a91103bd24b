from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from coeff_tuning import cli
from coeff_tuning.errors import RunError
from coeff_tuning.studies import rows
from coeff_tuning.studies.hull import experiment, report
from coeff_tuning.studies.hull.geometry import Hull
from coeff_tuning.studies.hull.layer import HullLayer

ROOT = Path(__file__).parents[3]


def test_layer_is_the_formula() -> None:
    layer = HullLayer(3, 5, torch.Generator().manual_seed(0)).requires_grad_(False)
    layer.coeff_delta.copy_(torch.randn(3, 3))
    coeff = torch.eye(3) + layer.coeff_delta
    maps = []
    for h in range(3):
        columns = slice(2 * h, 2 * h + 2)
        query, key = layer.tokens @ layer.wq[:, columns], layer.tokens @ layer.wk[:, columns]
        maps.append((query @ key.T / 2**0.5).softmax(1))
    for h in range(3):
        mixed = sum(coeff[h, g] * maps[g] for g in range(3))
        torch.testing.assert_close(layer.mixed_maps()[h], mixed)
        torch.testing.assert_close(layer()[h], mixed @ layer.tokens[:, 2 * h : 2 * h + 2])


@pytest.mark.parametrize(("placement", "is_outside"), [("inside", False), ("outside", True)])
def test_targets_are_where_they_say(placement: str, is_outside: bool) -> None:
    hulls = [Hull(np.random.default_rng(seed).normal(size=(6, 2))) for seed in range(3)]
    targets = experiment.draw_targets(hulls, placement, torch.Generator().manual_seed(0))
    for hull, points in zip(hulls, targets.numpy(), strict=True):
        assert (hull.is_outside(points) == is_outside).all()
        assert len(np.unique(points)) == 2 * experiment.TOKENS


def test_what_each_method_can_do() -> None:
    found = {
        (placement, method): experiment.run(1, method, placement, 150).row
        for placement in experiment.PLACEMENTS
        for method in experiment.METHODS
    }
    for row in found.values():
        assert row["loss_end"] < row["loss_start"]
    for method in experiment.METHODS:
        assert found["inside", method]["loss_floor"] == 0
        assert found["inside", method]["loss_start"] == found["inside", "both"]["loss_start"]
    plain, alone, both = (found["outside", method] for method in experiment.METHODS)
    assert plain["share_outside"] == 0
    assert plain["loss_end"] > plain["loss_floor"] > 0.1
    assert plain["smallest_entry"] >= 0
    assert plain["smallest_row_sum"] == pytest.approx(1)
    assert plain["largest_row_sum"] == pytest.approx(1)
    assert alone["share_outside"] > 0
    assert both["loss_end"] < min(plain["loss_end"], alone["loss_end"])
    assert both["share_outside"] > 0.5
    assert both["smallest_entry"] < 0 < 1 < both["largest_entry"]
    assert [row["trained_numbers"] for row in (plain, alone, both)] == [128, 16, 144]


def test_command_writes_everything_and_is_seeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["study", "hull", "--seeds", "3,5", "--steps", "4", "--output_dir", str(tmp_path / "a")]
    monkeypatch.setattr("sys.argv", ["coeff-tuning", *argv])
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert "floor" in printed
    assert "hull.gif" in printed
    found = rows.read(tmp_path / "a" / "hull.jsonl", "hull")
    again = [outcome.row for outcome in experiment.run_all([3, 5], 4, ())]
    assert [(row["seed"], row["placement"], row["method"]) for row in found][:4] == [
        (3, "inside", "Wq, Wk"),
        (3, "inside", "coefficients"),
        (3, "inside", "both"),
        (3, "outside", "Wq, Wk"),
    ]
    assert len(found) == 12
    assert [row["loss_end"] for row in found] == [row["loss_end"] for row in again]
    assert found[0]["command"].startswith("coeff-tuning study hull --seeds 3,5 --steps 4 --output_dir ")
    image = imread(tmp_path / "a" / "hull.png")
    assert min(image.shape[:2]) > 600
    with Image.open(tmp_path / "a" / "hull.gif") as animation:
        assert animation.n_frames > 3
    assert len(report.summary(found)) == 6


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "hull", "--steps", "0", "--output_dir", str(tmp_path)]) == 2
    assert "--steps must be at least 1; got 0" in capsys.readouterr().err
    assert cli.main(["study", "hull", "--seeds", "a", "--output_dir", str(tmp_path)]) == 2
    assert "--seeds must be whole numbers separated by commas" in capsys.readouterr().err


def test_foreign_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"study": "hull"}) + "\n" + json.dumps({"bench": "op"}) + "\n")
    with pytest.raises(
        RunError, match=r"rows.jsonl, line 2: must be a row of 'coeff-tuning study hull'; got '{\"bench"
    ):
        rows.read(path, "hull")


def test_stored_rows_support_the_page() -> None:
    found = rows.read(ROOT / "docs" / "results" / "hull.jsonl", "hull")
    assert len(found) == 30
    for row in found:
        if row["method"] == "Wq, Wk":
            assert row["share_outside"] == 0
            assert row["loss_end"] >= row["loss_floor"]
        if row["method"] == "both" and row["placement"] == "outside":
            assert row["loss_end"] < row["loss_floor"]
            assert row["share_outside"] > 0.5
