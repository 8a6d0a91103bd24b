"""The examples on real weights and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coeff_tuning import cli
from coeff_tuning.recipes.run_folder import read_metrics


@pytest.mark.network
@pytest.mark.timeout(1200)
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--output_dir", str(tmp_path)]) == 0
    probe, tuned = read_metrics(tmp_path / "linear-seed0"), read_metrics(tmp_path / "coeff-seed0")
    assert tuned["extra_parameters"] == 432
    assert tuned["heldout_samples"] == probe["heldout_samples"] >= 700
    assert tuned["accuracy"] >= probe["accuracy"] + 0.02
    namespace: dict[str, Any] = {}
    exec(capsys.readouterr().out.rpartition("load it in Python:")[2], namespace)
    assert namespace["model"].active_adapters == ["default"]


@pytest.mark.network
@pytest.mark.timeout(600)
def test_bbc_news_has_864_coefficients(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "examples" / "configs" / "bbc-news-minilm.yaml"
    flags = ["--max_steps", "1", "--max_eval_samples", "20", "--output_dir", str(tmp_path / "run")]
    assert cli.main(["train", "text-classification", "--config", str(config), *flags]) == 0
    assert read_metrics(tmp_path / "run")["extra_parameters"] == 6 * 12 * 12
