"""`coeff-tuning bench model`: whole models with coefficients, against LoRA and against the model without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from coeff_tuning.bench import rows, serving, training
from coeff_tuning.bench.memory import peak_in_child
from coeff_tuning.bench.rows import Row
from coeff_tuning.bench.timing import interleave
from coeff_tuning.bench.training import COEFF, HEAD, LORA, VARIANTS
from coeff_tuning.errors import BenchError
from coeff_tuning.ops import Backend, Request, select_backend

TIME_GOAL, MEMORY_GOAL = 0.95, 1.0
GENERATE_GOAL, MANY_GOAL, LOAD_GOAL_MS = 0.9, 1.10, 50.0
CASES = (*training.CASES, "generate", "many", "load")


def run_model(cases: list[str], rounds: int | None, store: rows.Store, *, memory: bool) -> None:
    """Measure cases.

    Args:
        cases: some of `CASES`; empty for all.
        rounds: timed runs of each; None for as many as take about 20 seconds, at least 5.
        store: takes the rows.
        memory: whether to measure the peak memory of training steps.

    Raises:
        BenchError: a case is not known.
    """
    unknown = [name for name in cases if name not in CASES]
    if unknown:
        raise BenchError(f"cases must be some of {', '.join(CASES)}; got {', '.join(unknown)}")
    chosen = cases or list(CASES)
    for number, name in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        with _backends_used() as used:
            if name in training.CASES:
                found = _run_training(training.CASES[name], rounds, memory=memory)
            else:
                found = {"generate": _run_generation, "many": _run_many, "load": _run_loading}[name](rounds)
        context = {"backends": sorted(used), **rows.context("cpu")}
        store.add([{**row, **context} for row in found])


@contextmanager
def _backends_used() -> Iterator[set[str]]:
    """Names of the backends that the op chose in the block."""
    used: set[str] = set()

    def select(request: Request, name: str | None = None) -> Backend:
        backend = select_backend(request, name)
        if not torch.compiler.is_compiling():  # a graph that writes to the set is compiled again
            used.add(backend.name)
        return backend

    with mock.patch("coeff_tuning.functional.select_backend", select):
        yield used


def _row(case: str, about: str, variant: str, problem: str, trainable: int) -> Row:
    return {
        "bench": "model",
        "case": case,
        "about": about,
        "variant": variant,
        "status": "wrong" if problem else "ok",
        "reason": problem,
        "trainable": trainable,
        "dtype": "float32",
        "figures": [],
    }


def _run_training(case: training.Case, rounds: int | None, *, memory: bool) -> list[Row]:
    models = {variant: training.prepare(case, variant) for variant in VARIANTS}
    problem = training.problem_with(models[COEFF], case.batch(True))
    found = {}
    for name, model in models.items():
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found[name] = _row(case.name, f"training step, {case.about}", name, problem if name == COEFF else "", trainable)
    if problem:
        return [found[COEFF]]
    times = interleave({name: training.make_step(case, model) for name, model in models.items()}, "cpu", rounds)
    del models
    for name in VARIANTS:
        found[name].update(times.of(name))
    figures = [rows.goal("time / LoRA", at_most=TIME_GOAL, **times.ratio(COEFF, LORA))]
    figures += [rows.goal("time / head alone", at_most=None, **times.ratio(COEFF, HEAD))]
    if memory:
        for name in VARIANTS:
            peak, reason = peak_in_child(training.prepare_memory, case.name, name)
            found[name].update(peak_above_model_mib=peak, reason=reason)
        mine, rival = (found[name]["peak_above_model_mib"] for name in (COEFF, LORA))
        if mine is not None and rival is not None:
            figures.append(rows.goal("peak memory / LoRA", round(mine / rival, 4), MEMORY_GOAL))
    found[COEFF]["figures"] = figures
    return list(found.values())


def _run_pair(case: str, about: str, pair: serving.Pair, at_most: float, rounds: int | None) -> list[Row]:
    """Rows of a rival and of the one with coefficients."""
    rival, name = pair.calls
    mine = _row(case, about, name, pair.problem, pair.trainable[name])
    if pair.problem:
        return [mine]
    other = _row(case, about, rival, "", pair.trainable[rival])
    times = interleave(pair.calls, "cpu", rounds)
    other.update(times.of(rival))
    mine.update(times.of(name))
    mine["figures"] = [rows.goal(f"time / {rival}", at_most=at_most, **times.ratio(name, rival))]
    return [other, mine]


def _run_generation(rounds: int | None) -> list[Row]:
    about = f"SmolLM2-135M, {serving.NEW_TOKENS} tokens after {serving.PROMPT_TOKENS}, greedy"
    found = _run_pair("generate", about, serving.generation(), round(1 / GENERATE_GOAL, 4), rounds)
    for row in found:
        if row["status"] == "ok":
            row["tokens_per_s"] = round(1e3 * serving.NEW_TOKENS / row["median_ms"], 1)
    return found


def _run_many(rounds: int | None) -> list[Row]:
    about = f"MiniLM-L6, {serving.ADAPTERS} texts of {serving.TEXT_TOKENS} tokens"
    return _run_pair("many", about, serving.many_adapters(), MANY_GOAL, rounds)


def _run_loading(rounds: int | None) -> list[Row]:
    measured = serving.loading(rounds)
    found = []
    for name in (serving.NEW, serving.SWAP):
        row = _row("load", "load_adapter, ViT-B/16", name, measured.problem, measured.trainable)
        if not measured.problem:
            row.update(measured.times.of(name))
            row["figures"] = [rows.goal("ms", row["median_ms"], LOAD_GOAL_MS)]
        found.append(row)
    if not measured.problem:
        found[1]["figures"].append(rows.goal("recompilations", measured.recompilations, 0))
    return found
