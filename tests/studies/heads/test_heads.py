from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from coeff_tuning import cli
from coeff_tuning.errors import RunError
from coeff_tuning.studies import rows
from coeff_tuning.studies.heads import experiment, picture, report, study

ROOT = Path(__file__).parents[3]
STORED = ROOT / "docs" / "results" / "heads"


def row(heads: int, method: str, seed: int, accuracy: float) -> dict[str, Any]:
    count = {"probe": 0, "scales": heads, "coefficients": heads**2}[method] * 4
    job = {"heads": heads, "method": method, "seed": seed}
    return {"study": "heads", **job, "accuracy": accuracy, "source_accuracy": 0.9, "coefficients": count}


FOUND = [
    *(row(1, "probe", seed, accuracy) for seed, accuracy in ((0, 0.5), (1, 0.7))),
    *(row(1, "coefficients", seed, accuracy) for seed, accuracy in ((1, 0.6), (0, 0.5))),
    *(row(4, "probe", seed, accuracy) for seed, accuracy in ((0, 0.6), (1, 0.8))),
    *(row(4, "scales", seed, accuracy) for seed, accuracy in ((0, 0.61), (1, 0.83))),
    *(row(4, "coefficients", seed, accuracy) for seed, accuracy in ((0, 0.7), (1, 0.86), (2, 0.1))),
]


def test_gains_are_paired_by_seed_and_means_are_by_hand() -> None:
    assert report.gains(FOUND, 1, "coefficients") == pytest.approx([0, -10])
    assert report.gains(FOUND, 4, "coefficients") == pytest.approx([10, 6])  # seed 2 has no probe
    lines = report.summary(FOUND[:-1])[1]
    assert lines[0][-2:] == ["", "-5.0 ± 7.1 (0/2)"]
    assert lines[1][:2] == ["4", "64"]
    assert lines[1][-2:] == ["+2.0 ± 1.4 (2/2)", "+8.0 ± 2.8 (2/2)"]


def test_the_figure_shows_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    picture.draw(FOUND[:-1], tmp_path / "x.png")
    left, right = drawn[0].axes
    lines = {bar.get_label(): bar.lines[0].get_ydata(orig=False) for bar in left.containers}
    np.testing.assert_allclose(lines["scales"], [2])
    np.testing.assert_allclose(lines["coefficients"], [-5, 8])
    spread = {bar.get_label(): bar.lines[2][0].get_segments() for bar in left.containers}
    np.testing.assert_allclose(spread["coefficients"][1][:, 1], [8 - 8**0.5, 8 + 8**0.5])
    lines = {bar.get_label(): bar.lines[0].get_ydata(orig=False) for bar in right.containers}
    np.testing.assert_allclose(lines["probe"], [60, 70])
    np.testing.assert_allclose(lines["coefficients"], [55, 78])


def test_split_keeps_the_tasks_apart() -> None:
    train, heldout, target = experiment.load(3)
    other = experiment.load(4)[2]
    assert train.labels.unique().tolist() == heldout.labels.unique().tolist() == list(range(20))
    assert [len(part.labels) for part in target[:2]] == [5 * 16, 5 * 44]
    known = {image.numpy().tobytes() for image in torch.cat([train.pixels, heldout.pixels])}
    parts = [{image.numpy().tobytes() for image in part.pixels} for part in target]
    assert not any(part & known for part in parts)
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    pools = [torch.cat([t.train.pixels, t.validation.pixels]) for t in (target, other)]
    assert not {image.numpy().tobytes() for image in pools[1]} & parts[2]  # test images are so for every seed
    assert not torch.equal(target.train.pixels, other.train.pixels)


def test_numbers_of_weights_do_not_depend_on_heads() -> None:
    counts = {sum(p.numel() for p in experiment.make_model(heads).parameters()) for heads in (1, 2, 16)}
    assert len(counts) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"source_steps": 4, "target_steps": 3, "layers": 1, "width": 8, "mlp_width": 8}
    monkeypatch.setattr(experiment, "SETUP", {**experiment.SETUP, **small})
    monkeypatch.setattr(experiment, "fit_probe", lambda *_: [])  # tested elsewhere, and takes seconds
    experiment.start.cache_clear()


@pytest.mark.usefixtures("quick")
def test_killed_study_goes_on_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    study.run_all(whole, [1, 2], [0])
    measure, calls = study._measure, []

    def dies(job: Any, settings: Any, *, on_validation: bool) -> Any:
        calls.append(job)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure(job, settings, on_validation=on_validation)

    monkeypatch.setattr(study, "_measure", dies)
    with pytest.raises(KeyboardInterrupt):
        study.run_all(parts, [1, 2], [0])
    experiment.start.cache_clear()
    study.run_all(parts, [1, 2], [0])
    # 5 final runs, and two candidates for each of the 3 that have a learning rate; one was begun twice
    assert len(calls) == 5 + 2 * 3 + 1
    for name in ("rows.jsonl", "search.jsonl"):
        both = [rows.read(folder / name, "heads") for folder in (whole, parts)]
        kept = [[(r["heads"], r["method"], r["seed"], r["settings"], r["accuracy"]) for r in found] for found in both]
        assert kept[0] == kept[1]
    found = rows.read(whole / "rows.jsonl", "heads")
    assert [(r["heads"], r["method"], r["coefficients"]) for r in found] == [
        (1, "probe", 0),
        (1, "coefficients", 1),
        (2, "probe", 0),
        (2, "scales", 2),
        (2, "coefficients", 4),
    ]
    assert {r["heldout_images"] for r in rows.read(whole / "search.jsonl", "heads")} == {5 * 44}
    monkeypatch.setattr(experiment, "SETUP", {**experiment.SETUP, "source_steps": 5})
    with pytest.raises(RunError, match="was made with setup"):
        study.run_all(whole, [1], [0])


@pytest.mark.usefixtures("quick")
def test_only_coefficients_and_head_move(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: p.clone() for name, p in experiment.start(2, 0)[0].named_parameters()}
    fit, fitted = experiment.fit, []
    monkeypatch.setattr(experiment, "fit", lambda model, *rest: (fitted.append(model), fit(model, *rest)))
    for method in ("scales", "coefficients"):
        experiment.run(2, method, 0, 0.5, on_validation=True)
        (layer,) = {id(p): p for p in experiment.coeff_parameters(fitted[-1])}.values()
        assert layer.diag().abs().min() > 0
        assert (layer[0, 1] != 0).item() == (method == "coefficients")
    for name, p in experiment.start(2, 0)[0].named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0)
    moved = {name for name, p in fitted[-1].named_parameters() if p.requires_grad}
    assert all("coeff" in name or "classifier" in name for name in moved)


def test_stored_table_is_what_the_rows_say() -> None:
    found, tried = (rows.read(STORED / f"{name}.jsonl", "heads") for name in ("rows", "search"))
    table = report.page(found, tried)
    assert (STORED / "summary.md").read_text() == table
    assert table in (ROOT / "docs" / "heads.md").read_text()


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "heads", "--heads", "3", "--output_dir", str(tmp_path)]) == 2
    assert "divide the width 64, like 1,2,4; got '3'" in capsys.readouterr().err
    assert cli.main(["study", "heads", "--report", "--output_dir", str(tmp_path)]) == 2
    assert "there are no rows yet" in capsys.readouterr().err
