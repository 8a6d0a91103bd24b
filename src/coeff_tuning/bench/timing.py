"""Times of several functions against each other.

Runs are interleaved: one run of each, then again. What changes on a machine from minute to minute (clock, neighbours,
heat) then falls on all of them, and a ratio is one of neighbours in time. `torch.utils.benchmark.Timer` measures one
statement to its end before the next, with one thread unless told otherwise, and is not used for that reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 5, 200, 20.0


@dataclass(frozen=True)
class Times:
    """Interleaved runs.

    Attributes:
        seconds: of each run, by name.
        cores_busy_elsewhere: how busy other processes kept the machine meanwhile: 0.5 is half a core. With all cores
            taken, threads wait for each other and times mean little. None where the system does not say.
    """

    seconds: dict[str, list[float]]
    cores_busy_elsewhere: float | None

    def of(self, name: str) -> dict[str, float | None]:
        """Median and 20 and 80 % quantiles of one function in ms, the number of runs, and how busy the machine was."""
        q20, median, q80 = (round(1e3 * value, 4) for value in _quantiles(self.seconds[name]))
        return {
            "median_ms": median,
            "q20_ms": q20,
            "q80_ms": q80,
            "rounds": len(self.seconds[name]),
            "cores_busy_elsewhere": self.cores_busy_elsewhere,
        }

    def ratio(self, name: str, rival: str) -> dict[str, float]:
        """Median of one function over that of another; the spread is that of the ratios of single rounds.

        Args:
            name: the one.
            rival: the other.

        Returns:
            `value`, and the 20 and 80 % quantiles `q20` and `q80`.
        """
        mine, other = self.seconds[name], self.seconds[rival]
        q20, _, q80 = _quantiles([a / b for a, b in zip(mine, other, strict=True)])
        value = _quantiles(mine)[1] / _quantiles(other)[1]
        return {"value": round(value, 4), "q20": round(q20, 4), "q80": round(q80, 4)}


def interleave(calls: dict[str, Callable[[], object]], device: str, rounds: int | None = None) -> Times:
    """Time functions in turn, after one round that is not counted.

    Args:
        calls: what to run, by name.
        device: "cpu", or "cuda" for times of the GPU.
        rounds: runs of each. None: as many as take about 20 seconds, between 5 and 200.

    Returns:
        The times.
    """
    warm_up = sum(time_once(call, device) for call in calls.values())
    if rounds is None:
        rounds = int(min(_MAX_ROUNDS, max(_MIN_ROUNDS, _SECONDS / max(warm_up, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    before, start = _seconds_elsewhere(), time.perf_counter()
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(time_once(call, device))
    elapsed, after = time.perf_counter() - start, _seconds_elsewhere()
    busy = None if before is None or after is None else round(max(0.0, (after - before) / elapsed), 2)
    return Times(seconds, busy)


def time_once(call: Callable[[], object], device: str) -> float:
    """Seconds of one run: the wall clock on the CPU, events of the stream on CUDA."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def _seconds_elsewhere() -> float | None:
    """Processor time of all other processes since the machine started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _quantiles(numbers: Sequence[float]) -> tuple[float, float, float]:
    values = torch.tensor(numbers, dtype=torch.float64)
    q20, median, q80 = torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return q20, median, q80
