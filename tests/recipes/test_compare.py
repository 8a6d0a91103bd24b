from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from coeff_tuning import cli
from coeff_tuning.errors import RunError
from coeff_tuning.recipes.compare import compare, parse_seeds
from coeff_tuning.recipes.table import summarise


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs happen in this process; the list says which ones were started."""
    started: list[str] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        if "coeff_tuning.cli" not in command:
            return SimpleNamespace(returncode=1, stdout="")
        started.append(Path(command[command.index("--output_dir") + 1]).name)
        return SimpleNamespace(returncode=cli.main(command[3:]))

    monkeypatch.setattr(subprocess, "run", run)
    return started


@pytest.fixture
def config(bert: Path, reviews: Path, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"task: text-classification\nmodel_name_or_path: {bert}\ndataset: {reviews}\nmax_steps: 2\n"
        "disable_tqdm: true\nuse_cpu: true\n"
    )
    return str(path)


def test_table_and_going_on(config: str, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "out"
    first = compare(config, ["lora", "coeff"], [0], str(root), [])
    assert runs == ["lora-seed0", "coeff-seed0"]
    summary = compare(config, ["lora", "coeff"], [0, 1], str(root), [])
    assert runs[2:] == ["lora-seed1", "coeff-seed1"]
    assert [entry["extra_parameters"] for entry in summary] == [1024, 32]
    assert summary[1]["values"][0] == first[1]["mean"]
    assert len(list(csv.DictReader((root / "rows.csv").read_text().splitlines()))) == 4
    assert json.loads((root / "summary.json").read_text()) == summary
    assert (root / "summary.md").read_text().count("\n") == 4
    assert (root / "summary.png").stat().st_size > 1000
    assert "extra numbers" in capsys.readouterr().out
    with pytest.raises(RunError, match="lora-seed0 was run with other settings: max_steps was 2 and is now 3"):
        compare(config, ["lora"], [0], str(root), ["--max_steps", "3"])


def test_spread_is_the_sample_standard_deviation() -> None:
    rows = [
        {"method": "coeff", "seed": s, "accuracy": a, "extra_parameters": 432, "train_seconds": 2, "peak_memory_mib": 5}
        for s, a in enumerate([0.1, 0.2, 0.6])
    ]
    (entry,) = summarise(rows)
    assert entry["mean"] == pytest.approx(0.3)
    rows[0].update(resumed=True, train_seconds=0.1)
    assert summarise(rows)[0]["train_seconds"] == 2
    assert entry["std"] == pytest.approx(0.07**0.5)
    assert summarise(rows[:1])[0]["std"] is None  # one run says nothing about spread


def test_bad_arguments(config: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="unknown methods magic; known: linear, coeff"):
        compare(config, ["coeff", "magic"], [0], str(tmp_path), [])
    with pytest.raises(RunError, match="separated by commas, like 0,1,2; got '0;1'"):
        parse_seeds("0;1")
    Path(config).write_text("dataset: d\n")
    with pytest.raises(RunError, match="must name its task"):
        compare(config, ["coeff"], [0], str(tmp_path), [])


def test_failed_run_is_named(config: str, runs: list[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run coeff-seed0 failed"):
        compare(config, ["coeff"], [0], str(tmp_path / "out"), ["--text_column", "body"])
