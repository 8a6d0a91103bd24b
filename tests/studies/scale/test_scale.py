from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from coeff_tuning import cli
from coeff_tuning.bench import rows as bench_rows
from coeff_tuning.errors import RunError
from coeff_tuning.studies import rows
from coeff_tuning.studies.scale import cost
from coeff_tuning.studies.scale.shapes import SHAPES, Shape

ROOT = Path(__file__).parents[3]
MEASURED = ROOT / "docs" / "results" / "op-speed.jsonl"


def row(value: float, limit: float, **other: Any) -> dict[str, Any]:
    common = {"status": "ok", "measured": "forward", "is_default": True, "length": 197, "flop_ratio_limit": limit}
    return {**common, "figures": [{"what": "time / SDPA", "value": value}], **other}


def test_by_hand() -> None:
    found = {shape.name: cost.describe(shape, [0.5, 1.0, 4.0]) for shape in SHAPES}
    assert {name: entry["coefficients"] for name, entry in found.items()} == {
        "ViT-B": 1_728,
        "ViT-L": 24 * 256,
        "ViT-H": 32 * 256,
        "BERT-base": 1_728,
        "BERT-large": 24 * 256,
        "SmolLM2-135M": 2_430,
        "Qwen2 7B": 21_952,
        "Llama 3 8B": 32_768,
        "Llama 3 70B": 327_680,
        "Qwen2 72B": 327_680,
        "SDXL UNet": 50_000,
    }
    assert found["Llama 3 70B"]["flop_ratio"] == 1.25
    assert found["ViT-H"]["flop_ratio"] == 1.1
    assert found["SDXL UNet"]["flop_ratio"] == 1 + 20 / 128  # the worse of its two kinds of layers
    assert found["Llama 3 8B"]["adapter_bytes"] == 131_072
    assert found["Llama 3 8B"]["optimiser_bytes"] == 262_144
    assert found["Llama 3 70B"]["projected_time_ratio"] == {"median": 1.25, "low": 0.625, "high": 5.0}


def test_projection_takes_forward_passes_of_the_default_only() -> None:
    kept = row(1.2, 1.1)
    left = [
        row(9, 1, measured="forward+backward"),
        row(9, 1, is_default=False),
        row(9, 1, length=1),
        row(9, 1, status="refused"),
    ]
    assert cost.overheads([*left, kept]) == [pytest.approx(1.2 / 1.1)]
    with pytest.raises(RunError, match="needs rows of 'bench op' with forward passes"):
        cost.overheads(left)
    assert len(cost.overheads(bench_rows.read(MEASURED))) == 5


def test_stored_results_are_what_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    assert cli.main(["study", "scale", "--measured", str(MEASURED), "--output_dir", str(tmp_path)]) == 0
    assert "scale.png" in capsys.readouterr().out
    stored = ROOT / "docs" / "results" / "scale"
    found = rows.read(tmp_path / "rows.jsonl", "scale")
    assert found == rows.read(stored / "rows.jsonl", "scale")
    table = (tmp_path / "summary.md").read_text()
    assert table == (stored / "summary.md").read_text()
    assert table in (ROOT / "docs" / "scale.md").read_text()
    left, right = drawn[0].axes
    sizes = [entry["parameters"] for entry in found]
    np.testing.assert_array_equal(
        left.collections[0].get_offsets(), list(zip(sizes, [e["coefficients"] for e in found], strict=True))
    )
    flops = next(c for c in right.collections if c.get_label().startswith("FLOPs"))
    np.testing.assert_allclose(flops.get_offsets(), list(zip(sizes, [e["flop_ratio"] for e in found], strict=True)))
    bars = right.containers[0]
    np.testing.assert_allclose(
        bars.lines[0].get_ydata(orig=False), [e["projected_time_ratio"]["median"] for e in found]
    )
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(
        ends, [[e["projected_time_ratio"]["low"], e["projected_time_ratio"]["high"]] for e in found]
    )


def test_missing_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["study", "scale", "--measured", str(tmp_path / "none.jsonl"), "--output_dir", str(tmp_path)]
    assert cli.main(argv) == 2
    assert "rows cannot be read" in capsys.readouterr().err


def test_flops_are_those_of_the_op() -> None:
    found = [r for r in bench_rows.read(MEASURED) if r["status"] == "ok" and r["measured"] == "forward"]
    for r in found:
        shape = Shape("x", 1, ((1, r["heads"], r["head_size"]),), "")
        assert cost.flop_ratio(shape) == pytest.approx(r["flop_ratio_limit"], abs=1e-4)
