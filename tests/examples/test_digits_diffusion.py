"""A new digit for a small diffusion transformer: few steps, every method; counts, files, the base model, resuming."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from coeff_tuning.errors import RunError

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
FOLDER = Path(__file__).parents[2] / "examples" / "digits_diffusion"
NAMES = ("digits_model", "digits_sheet", "digits")
BLOCKS, HEADS, WIDTH = 4, 8, 128
COEFFICIENTS, EMBEDDINGS, LORA = BLOCKS * HEADS**2, BLOCKS * WIDTH, BLOCKS * 2 * 4 * 2 * WIDTH


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The example's modules, importable by name as when it is run."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def finished(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    scripts["digits"].main(flags(folder))
    return folder


def flags(folder: Path, steps: int = 2) -> list[str]:
    given = {"output_dir": folder, "pretrain_steps": 3, "steps": steps, "samples": 5, "seeds": 1}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_a_run_writes_a_row_of_each_method_and_the_sheet(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "rows.jsonl").read_text().splitlines()]
    assert {(row["method"], row["prior"]) for row in rows} == {("base", False)} | {
        (method, prior) for method in ("embedding", "coeff", "lora", "coeff+lora") for prior in (True, False)
    }
    counts = {row["method"]: row["numbers"] for row in rows}
    assert counts["embedding"] == {"embedding": EMBEDDINGS}
    assert counts["coeff"] == {"embedding": EMBEDDINGS, "coeff": COEFFICIENTS}
    assert counts["coeff+lora"] == {"embedding": EMBEDDINGS, "coeff": COEFFICIENTS, "lora": LORA}
    assert all(row["drift"] == 0 for row in rows if row["method"] in ("base", "embedding"))
    assert all(row["drift"] > 0 for row in rows if row["method"] not in ("base", "embedding"))
    assert (finished / "sheet.png").stat().st_size > 0


def test_a_second_start_repeats_nothing_and_other_settings_are_refused(
    scripts: dict[str, ModuleType], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    tuned: list[Any] = []
    monkeypatch.setattr(scripts["digits"], "tune", lambda *args: tuned.append(args))
    scripts["digits"].main(flags(finished))
    assert len(tuned) == 1
    assert path.read_text().splitlines(keepends=True)[:-1] == lines[:-1]
    with pytest.raises(RunError, match="choose another --output_dir"):
        scripts["digits"].main(flags(finished, steps=3))


@pytest.mark.parametrize("method", ["coeff", "coeff+lora"])
def test_without_adapters_old_classes_are_drawn_as_before(
    scripts: dict[str, ModuleType], finished: Path, method: str
) -> None:
    model, digits = scripts["digits_model"], scripts["digits"]
    data = model.digits()
    base = model.pretrained(finished / "base-3", data, 3)
    shots, _ = digits.few_shots(data, 0)
    tuned, kinds = digits.attach(copy.deepcopy(base), method)
    labels = torch.tensor([0, 5, 8])
    before = model.draw(base, labels, 4)
    assert torch.equal(model.draw(tuned, labels, 4), before)
    digits.tune(tuned, kinds, shots, None, 2, 0)
    assert not torch.equal(model.draw(tuned, labels, 4), before)
    with tuned.disable_adapter():
        assert torch.equal(model.draw(tuned, labels, 4), before)
