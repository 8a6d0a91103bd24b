from __future__ import annotations

import pytest

from coeff_tuning.bench import timing
from coeff_tuning.bench.timing import Times, interleave


def test_runs_are_interleaved_after_one_that_is_not_counted() -> None:
    order: list[str] = []
    times = interleave({name: lambda name=name: order.append(name) for name in ("sdpa", "a", "b")}, "cpu", 3)
    assert order == ["sdpa", "a", "b"] * 4
    assert {name: len(runs) for name, runs in times.seconds.items()} == {"sdpa": 3, "a": 3, "b": 3}


@pytest.mark.parametrize(("each", "rounds"), [(100.0, 5), (1.0, 10), (1e-6, 200)])
def test_number_of_rounds_fills_the_time(each: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_once", lambda call, device: each)
    assert len(interleave({"a": lambda: None, "b": lambda: None}, "cpu").seconds["a"]) == rounds


def test_medians_quantiles_and_ratios() -> None:
    times = Times({"a": [0.002, 0.004, 0.003, 0.001, 0.100], "b": [0.001, 0.001, 0.003, 0.002, 0.010]}, 0.25)
    assert times.of("a") == {
        "median_ms": 3.0,
        "q20_ms": 1.8,
        "q80_ms": 23.2,
        "rounds": 5,
        "cores_busy_elsewhere": 0.25,
    }
    ratio = times.ratio("a", "b")  # of rounds: 2, 4, 1, 0.5, 10
    assert ratio == {"value": 1.5, "q20": pytest.approx(0.9), "q80": pytest.approx(5.2)}


def test_other_processes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_seconds_elsewhere", iter([100.0, 103.0]).__next__)
    monkeypatch.setattr(timing, "time_once", lambda call, device: 1.0)
    monkeypatch.setattr(timing.time, "perf_counter", iter([10.0, 12.0]).__next__)
    assert interleave({"a": lambda: None}, "cpu", 1).cores_busy_elsewhere == 1.5
