"""The tables of README and docs hold what the stored rows say."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("README.md", "docs/speed.md", "docs/hull.md", "docs/fewshot.md", "docs/learnt.md", "docs/scenes.md")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_tables_are_up_to_date(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0


def test_check_sees_other_rows_and_writing_mends(
    script: ModuleType, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copy / "docs" / "results" / "op-speed.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    row = next(row for row in rows if row["is_default"])
    row["figures"][0]["value"] = 7.77
    source.write_text("\n".join(map(json.dumps, rows)))
    before = (copy / "README.md").read_text()
    assert script.main(["--check"], root=copy) == 1
    assert (
        "not what the rows say: README.md (op speed); run: python benchmarks/readme_table.py" in capsys.readouterr().err
    )
    assert (copy / "README.md").read_text() == before
    assert script.main([], root=copy) == 0
    after = (copy / "README.md").read_text()
    assert "7.77" in after
    assert len(after.splitlines()) == len(before.splitlines())
    assert script.main(["--check"], root=copy) == 0


def test_edited_table_is_seen(script: ModuleType, copy: Path) -> None:
    path = copy / "README.md"
    text = path.read_text()
    start = text.index("<!-- op speed")
    path.write_text(text[:start] + text[start:].replace("| 1.", "| 9.", 1))
    assert script.main(["--check"], root=copy) == 1


def test_hardware_is_named_and_rows_of_two_machines_do_not_mix(script: ModuleType, copy: Path) -> None:
    source = copy / "docs" / "results" / "op-speed.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    assert rows[0]["cpu"] in (ROOT / "README.md").read_text()
    rows[0]["cpu"] = "another"
    source.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="must be of one machine; got .*; another, "):
        script.main([], root=copy)


def test_rows_of_a_busy_machine_are_not_shown(script: ModuleType, copy: Path) -> None:
    source = copy / "docs" / "results" / "op-speed.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows[-1].update(cores_busy_elsewhere=0.9, command="coeff-tuning bench op --threads 2")
    source.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="busy meanwhile; measure again: coeff-tuning bench op --threads 2"):
        script.main([], root=copy)


def test_markers_must_be_there(script: ModuleType, copy: Path) -> None:
    (copy / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="the file must hold '<!-- memory: made by"):
        script.main([], root=copy)
