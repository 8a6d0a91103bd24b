from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from coeff_tuning import cli
from coeff_tuning.bench import plot
from coeff_tuning.errors import BenchError


def make_rows(size: str = "length", values: tuple[int, ...] = (64, 128, 256)) -> list[dict[str, Any]]:
    fixed = {"batch": 1, "heads": 12, "length": 64, "head_size": 64, "is_causal": False, "dtype": "float32"}
    machine = {"gpu": None, "cpu": "a CPU", "threads": 2, "cores": 4, "versions": {"torch": "2.0"}}
    return [
        {
            **fixed,
            **machine,
            size: value,
            "bench": "op",
            "measured": measured,
            "backend": backend,
            "status": "ok",
            "median_ms": value * (1 + number),
            "peak_above_inputs_mib": 0.1 * value,
            "one_array_of_maps_mib": value**2 / 2**10,
        }
        for measured in ("forward", "forward+backward")
        for number, backend in enumerate(("sdpa", "chunked", "mine"))
        for value in values
    ]


@pytest.mark.parametrize("size", ["length", "heads", "batch"])
def test_plot_of_a_sweep(size: str, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.json", tmp_path / "plot.png"
    source.write_text(json.dumps(make_rows(size)))
    assert cli.main(["bench", "plot", str(source), str(target)]) == 0
    image = imread(target)
    assert min(image.shape[:2]) > 400
    assert image.std() > 0.05


def test_wrong_rows_are_not_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(plot, "_panel", lambda axes, rows, size, key: drawn.append(rows) or axes.plot([1], label="x"))
    rows = make_rows()
    rows[0].update(status="wrong")
    plot.plot_op(rows, tmp_path / "plot.png")
    assert len(drawn) == 4
    assert rows[0] not in drawn[0]
    assert len(drawn[0]) == 8


def test_one_size_is_not_a_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="several lengths, heads or batches.*got 6 rows"):
        plot.plot_op(make_rows(values=(64,)), tmp_path / "plot.png")


def test_files_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.json"
    for text, message in ((None, "No such file"), ("[", "as JSON"), ("[1]", "something else")):
        if text is not None:
            source.write_text(text)
        assert cli.main(["bench", "plot", str(source), str(tmp_path / "plot.png")]) == 2
        assert message in capsys.readouterr().err
