from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from coeff_tuning import coeff_attention
from tests.ops.sharded_heads import ring, shard

# Heads and queries are split over 2 and over 3 processes.
B, H, L, S, E, EV = 2, 6, 12, 7, 5, 5


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "scaling_out", Path(__file__).parents[2] / "benchmarks" / "scaling_out.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_out"] = module
    spec.loader.exec_module(module)
    return module


def _tensors() -> list[Tensor]:
    sizes = [(B, H, L, E), (B, H, S, E), (B, H, S, EV), (H, H), (B, H, L, EV)]
    return [torch.randn(size, dtype=torch.float64) for size in sizes]


def _expected(tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = coeff_attention(*leaves, backend="reference")
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _run(ranks: int, folder: Path, tensors: list[Tensor], grad: Tensor) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["coeff_tuning", "tests.ops.sharded_heads"])
    results: Any = context.Queue()
    arrays = (tensors, grad, results)
    processes = [context.Process(target=shard, args=(r, ranks, str(folder / "store"), *arrays)) for r in range(ranks)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [found[rank] for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_heads_on_several_processes(ranks: int, tmp_path: Path, script: ModuleType) -> None:
    *tensors, grad = _tensors()
    expected = _expected(tensors, grad)
    found = _run(ranks, tmp_path, tensors, grad)
    shape = script.Shape("", 1, H, H, E, B, L, S, ranks)
    for split in ("by_values", "by_queries"):
        parts = [[torch.from_numpy(array) for array in own[split][0]] for own in found]
        got = [torch.cat(part, 1) for part in zip(*(own[:4] for own in parts), strict=True)]
        for name, value, want in zip(("out", "query", "key", "value"), got, expected, strict=False):
            torch.testing.assert_close(value, want, msg=lambda text, n=name, s=split: f"{s}, {n}: {text}")
        for own in parts:
            torch.testing.assert_close(own[4], expected[4])
    # What the page says is moved is what was moved.
    assert {own["by_queries"][1] for own in found} == {round(script.queries(shape))}
    assert {own["by_values"][1] for own in found} == {round(script.values(shape))}


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_two_turns_of_a_ring_need_one_sum_per_head(blocks: int) -> None:
    *tensors, grad = _tensors()
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = ring(*leaves, blocks)
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    for got, want in zip(found, _expected(tensors, grad), strict=True):
        torch.testing.assert_close(got, want)


def test_tables_are_up_to_date(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--check"]) == 0
    changed = tmp_path / "page.md"
    changed.write_text(script.PAGE.read_text().replace("| Llama 3 8B |", "| Llama 3 9B |", 1))
    assert script.main(["--check"], changed) == 1
    assert script.main([], changed) == 0
    assert changed.read_text() == script.PAGE.read_text()
