from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coeff_tuning.errors import RunError
from coeff_tuning.studies.grid import Grid

JOB = {"task": "cats", "seed": 1}


def test_a_row_is_found_by_all_entries_of_its_job(tmp_path: Path) -> None:
    grid = Grid("toy", tmp_path)
    grid.store("final", JOB, {"settings": {"rate": 0.1}, "accuracy": 0.5})
    for again in (grid, Grid("toy", tmp_path)):
        row = again.find("final", JOB)
        assert row is not None
        assert (row["study"], row["stage"], row["accuracy"]) == ("toy", "final", 0.5)
        assert row["versions"]["torch"]
        assert row["date"]
        assert again.find("final", {**JOB, "seed": 2}) is None
        assert again.find("search", JOB) is None
        assert again.find("final", JOB, {"rate": 0.2}) is None
        assert again.find("final", JOB, {"rate": 0.1}) == row


def test_search_measures_what_is_new_and_takes_the_first_of_the_best(tmp_path: Path) -> None:
    seen = []
    scores = {0.1: 0.25, 0.2: 0.75, 0.3: 0.75}

    def measure(settings: dict[str, Any]) -> dict[str, Any]:
        seen.append(settings["rate"])
        return {"accuracy": scores[settings["rate"]]}

    def search(rates: list[float]) -> Any:
        candidates = [{"rate": rate} for rate in rates]
        return Grid("toy", tmp_path).search(JOB, candidates, measure, lambda row: row["accuracy"])["settings"]

    assert search([0.1, 0.2]) == {"rate": 0.2}
    assert search([0.1, 0.2, 0.3]) == {"rate": 0.2}
    assert seen == [0.1, 0.2, 0.3]


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    grid = Grid("toy", tmp_path)
    grid.store("search", JOB, {"settings": {}, "pixels": 56})
    grid.check(lambda _: {"pixels": 56})
    with pytest.raises(RunError, match="search.jsonl was made with pixels 56, now it is 70"):
        grid.check(lambda _: {"pixels": 70})
    with pytest.raises(RunError, match="line 1: must be a row of 'coeff-tuning study other'"):
        Grid("other", tmp_path)
