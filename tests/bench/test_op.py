from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from coeff_tuning import cli
from coeff_tuning.bench import op
from coeff_tuning.bench.rows import read
from coeff_tuning.ops.reference import reference_attention
from tests.bench.conftest import Add
from tests.bench.test_gate import transposed, wrong_gradient

SMALL = "B=1,H=3,L=37"
CONTEXT = {"device", "cpu", "cores", "threads", "gpu", "versions", "git_commit", "date", "command"}
CASE = {"bench", "shape", "batch", "heads", "kv_heads", "length", "source", "head_size", "is_causal", "dtype"}
RESULT = {"measured", "backend", "is_default", "status", "reason", "errors", "figures", "flops", "flop_ratio_limit"}
TIME = {"median_ms", "q20_ms", "q80_ms", "rounds", "cores_busy_elsewhere", "gflops_per_s"}


def bench(*argv: str) -> int:
    return cli.main(["bench", "op", "--device", "cpu", "--repeats", "2", *argv])


def test_rows_are_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    assert bench("--shapes", SMALL, "--output", str(output)) == 0
    rows = json.loads(output.read_text())
    assert {(row["measured"], row["backend"]) for row in rows} >= {
        (measured, backend)
        for measured in ("forward", "forward+backward")
        for backend in ("sdpa", "chunked", "reference")
    }
    for row in rows:
        if row["status"] == "unsupported":
            continue
        assert row.keys() >= CONTEXT | CASE | RESULT | TIME | {"peak_above_inputs_mib", "one_array_of_maps_mib"}
        assert row["status"] == "ok"
        assert row["median_ms"] > 0
        assert row["peak_above_inputs_mib"] >= 0
        assert row["versions"]["torch"]
        assert len(row["figures"]) == (row["backend"] != "sdpa")
    assert sum(row["is_default"] for row in rows) == 2
    shown = capsys.readouterr().out
    assert "x SDPA" in shown
    assert str(output) in shown


def test_no_speed_of_a_wrong_backend(add_backend: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_backend("broken", transposed)
    output = tmp_path / "rows.json"
    assert bench("--shapes", SMALL, "--backends", "chunked", "broken", "--time-only", "--output", str(output)) == 2
    rows = [row for row in read(output) if row["backend"] == "broken"]
    assert len(rows) == 2
    for row in rows:
        assert row["status"] == "wrong"
        assert row["reason"].startswith("output off by")
        assert row["errors"]["small out"] > 0.1
        assert not row.keys() & {"median_ms", "gflops_per_s", "peak_above_inputs_mib"}
        assert row["figures"] == []
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if "broken" in line and "│" in line]
    assert len(lines) == 2
    assert all("WRONG" in line and "." not in line for line in lines)
    assert "wrong results: broken: output off by" in captured.err


def test_wrong_gradient_stops_the_forward_too(add_backend: Add, tmp_path: Path) -> None:
    add_backend("broken", lambda request: wrong_gradient("key", request))
    output = tmp_path / "rows.json"
    bench("--shapes", SMALL, "--backends", "broken", "--forward-only", "--time-only", "--output", str(output))
    statuses = {row["backend"]: row["status"] for row in read(output)}
    assert statuses == {"sdpa": "ok", "broken": "wrong"}


def test_refusals_are_said(add_backend: Add, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    add_backend("shy", reference_attention, reason="needs 5 heads, got 3.")
    output = tmp_path / "rows.json"
    assert bench("--shapes", SMALL, "--backends", "shy", "--time-only", "--output", str(output)) == 0
    row = next(row for row in read(output) if row["backend"] == "shy")
    assert row["status"] == "unsupported"
    assert "median_ms" not in row
    assert "needs 5 heads, got 3." in capsys.readouterr().out


def test_reference_runs_only_where_its_maps_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(op, "available_mib", lambda device: 0.25)
    output = tmp_path / "rows.json"
    assert bench("--shapes", SMALL, "--backends", "reference", "--time-only", "--output", str(output)) == 0
    row = next(row for row in read(output) if row["backend"] == "reference")
    assert "more than a third of the 0 MiB that are free" in row["reason"]
    assert row["status"] == "unsupported"


def test_memory_only(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    size = "B=1,H=4,L=1024"
    assert bench("--shapes", size, "--backends", "chunked", "reference", "--memory-only", "--output", str(output)) == 0
    rows = read(output)
    assert all("median_ms" not in row for row in rows)
    peak = {row["backend"]: row["peak_above_inputs_mib"] for row in rows if row["measured"] == "forward+backward"}
    maps = rows[0]["one_array_of_maps_mib"]
    assert maps == 16
    assert peak["reference"] > 3 * maps
    assert peak["chunked"] < peak["reference"] / 2


def test_single_query_is_measured_forward_only(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    argv = ["--shapes", "B=1,H=6,kv=2,L=1,S=53", "--dtype", "bfloat16", "--time-only", "--output", str(output)]
    assert bench(*argv, "--backends", "chunked") == 0
    assert [(row["measured"], row["status"]) for row in read(output)] == [("forward", "ok")] * 2


def test_jsonl_is_appended_to(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for length in (5, 7):
        argv = ["--shapes", f"B=1,H=2,L={length}", "--backends", "chunked", "--time-only", "--forward-only"]
        assert bench(*argv, "--output", str(output)) == 0
    assert [row["length"] for row in read(output)] == [5, 5, 7, 7]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backends", "magic"], "backends must be some of .*chunked.*; got magic"),
        (["--output", "rows.csv"], "must end in .json .*; got 'rows.csv'"),
        (["--output", "no/such/rows.json"], "there is no no/such"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--shapes", "B=1"], "must say H, L"),
    ],
)
def test_errors_come_before_any_work(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "op", "--device", "cpu", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err)
    assert len(captured.err.splitlines()) == 1


@pytest.mark.gpu
def test_on_cuda(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    argv = ["bench", "op", "--device", "cuda", "--shapes", "B=2,H=4,L=512", "--repeats", "3", "--output", str(output)]
    assert cli.main(argv) == 0
    rows = [row for row in read(output) if row["status"] == "ok"]
    assert {row["backend"] for row in rows} >= {"sdpa", "chunked", "reference"}
    assert all(row["dtype"] == "bfloat16" and row["gpu"] and row["median_ms"] > 0 for row in rows)
    assert all(row["peak_above_inputs_mib"] > 0 for row in rows)


def test_no_cuda_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["bench", "op", "--device", "cuda"]) == 2
    assert "--device cuda needs a CUDA device that torch can use; there is none" in capsys.readouterr().err
