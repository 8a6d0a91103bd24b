from __future__ import annotations

import os
from collections.abc import Callable

import torch

from coeff_tuning.bench.memory import peak_in_child


def prepare_block(mib: int) -> tuple[Callable[[], object], str]:
    before = torch.ones(64 * 2**18)  # 64 MiB that were there before, and a higher peak in the past
    past = torch.ones(256 * 2**18)
    del past
    return lambda: (torch.ones(mib * 2**18).sum(), before.sum()), "cpu"


def prepare_failure(how: str) -> tuple[Callable[[], object], str]:
    if how == "raise":
        raise ValueError("no such thing")
    return lambda: os._exit(9), "cpu"


def test_peak_is_that_of_the_work_alone() -> None:
    peak, reason = peak_in_child(prepare_block, 100)
    assert reason == ""
    assert peak is not None
    assert 95 < peak < 110


def test_peaks_do_not_mix() -> None:
    peaks = [peak_in_child(prepare_block, mib)[0] for mib in (120, 20)]
    assert peaks[0] is not None
    assert peaks[1] is not None
    assert peaks[0] > 100 > 30 > peaks[1]


def test_failures_are_said() -> None:
    assert peak_in_child(prepare_failure, "raise") == (None, "memory was not measured: ValueError: no such thing")
    peak, reason = peak_in_child(prepare_failure, "die")
    assert peak is None
    assert "its process ended with code 9" in reason
