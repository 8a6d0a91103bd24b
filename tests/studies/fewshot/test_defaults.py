"""Stored rows of runs at the defaults of `train` are of the defaults of today."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

from coeff_tuning.recipes.arguments import MethodArguments, RecipeArguments

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


def test_rows_by_default_are_of_these() -> None:
    """Whoever changes one must make the rows `... by default` in docs/results/fewshot again: they do not name it."""
    recipe, method = RecipeArguments, MethodArguments
    assert (recipe.per_device_train_batch_size, recipe.num_train_epochs, recipe.learning_rate) == (8, 30, 1e-3)
    assert (recipe.lr_scheduler_type, recipe.warmup_steps) == ("cosine", 0.1)
    assert (method.coeff_learning_rate, method.coeff_dropout, method.coeff_weight_decay) == (1e-2, 0.2, 0)
    assert (method.head_start, method.lora_r, method.lora_alpha, method.lora_learning_rate) == ("auto", 8, 16, None)


def test_table_of_batch_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "default_batch.py"))["main"]
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path)])
    assert "there are no rows" in capsys.readouterr().err
    shutil.copy(RESULTS / "defaults" / "search.jsonl", tmp_path)
    main(["--output_dir", str(tmp_path)])
    assert (tmp_path / "summary.md").read_text() == (RESULTS / "defaults" / "summary.md").read_text()
    found = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    assert "test" not in {row["heldout_split"] for row in found}
