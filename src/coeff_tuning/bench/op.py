"""`coeff-tuning bench op`: gate, time and peak memory of every backend beside torch's own attention."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from coeff_tuning.bench import gate, rows
from coeff_tuning.bench.calls import SDPA, Inputs, make_call, make_inputs, request_of, results
from coeff_tuning.bench.memory import peak_in_child
from coeff_tuning.bench.rows import Row
from coeff_tuning.bench.shapes import Shape
from coeff_tuning.bench.timing import Times, interleave
from coeff_tuning.errors import BenchError, UnsupportedError
from coeff_tuning.ops import list_backends, select_backend

TIME_RATIO = "time / SDPA"
_REFERENCE_ARRAYS = 6  # of all maps, with gradients


@dataclass(frozen=True)
class OpOptions:
    """What `bench op` is asked for.

    Attributes:
        shapes: the calls.
        backends: names; None for all that serve a call.
        passes: some of `shapes.PASSES`.
        rounds: timed runs of each; None for as many as take about 20 seconds.
        time: whether to time.
        memory: whether to measure memory.
    """

    shapes: list[Shape]
    backends: list[str] | None
    passes: tuple[str, ...]
    rounds: int | None = None
    time: bool = True
    memory: bool = True


def run_op(options: OpOptions, store: rows.Store) -> None:
    """Measure all shapes.

    Args:
        options: what is asked for.
        store: takes the rows.

    Raises:
        BenchError: a backend is not known.
    """
    unknown = [name for name in options.backends or [] if name not in list_backends()]
    if unknown:
        raise BenchError(f"backends must be some of {', '.join(list_backends())}; got {', '.join(unknown)}")
    for number, shape in enumerate(options.shapes, start=1):
        title = shape.text if shape.name == shape.text else f"{shape.name}: {shape.text}"
        print(f"[{number}/{len(options.shapes)}] {title}, {shape.dtype}", flush=True)
        store.add(_run_shape(shape, options))


def _run_shape(shape: Shape, options: OpOptions) -> list[Row]:
    """Rows of one shape: by pass, torch's own attention first, then each backend, also those that cannot run."""
    inputs = make_inputs(shape)
    names = [name for name in options.backends or list_backends() if name != SDPA]
    refusals = {name: reason for name in names if (reason := _refusal(shape, inputs, name))}
    verdicts = _pass_gate(shape, inputs, [name for name in names if name not in refusals], full=options.time)
    right = [SDPA, *(name for name, verdict in verdicts.items() if verdict.passed)]
    default = select_backend(request_of(shape, inputs)).name
    found = []
    context = rows.context(shape.device)
    for measured in (name for name in shape.passes if name in options.passes):
        calls = {name: make_call(shape, inputs, name, measured) for name in right}
        times = interleave(calls, shape.device, options.rounds) if options.time else None
        for name in [SDPA, *names]:
            row = {**_describe(shape, measured, name), "is_default": name == default}
            if name in refusals:
                row.update(status="unsupported", reason=refusals[name])
            elif name not in right:
                row.update(status="wrong", reason=verdicts[name].reason, errors=verdicts[name].errors)
            else:
                row["errors"] = verdicts[name].errors if name in verdicts else {}
                if times is not None:
                    row.update(_timed(shape, measured, name, times))
                if options.memory:
                    row["peak_above_inputs_mib"], row["reason"] = peak_in_child(prepare_memory, shape, name, measured)
            found.append({**row, **context})
    return found


def _refusal(shape: Shape, inputs: Inputs, name: str) -> str:
    """Why a backend does not run, or nothing."""
    try:
        select_backend(request_of(shape, inputs), name)
    except UnsupportedError as error:
        return str(error)
    need, available = _REFERENCE_ARRAYS * shape.maps_mib, available_mib(shape.device)
    if name == "reference" and need > available / 3:
        return f"needs {need:,.0f} MiB for its maps, more than a third of the {available:,.0f} MiB that are free."
    return ""


def _pass_gate(shape: Shape, inputs: Inputs, names: list[str], *, full: bool) -> dict[str, gate.Verdict]:
    trusted = results(shape, inputs, gate.TRUSTED) if full and set(names) - {gate.TRUSTED} else None
    return {name: gate.check(shape, name, inputs, trusted) for name in names}


def _describe(shape: Shape, measured: str, name: str) -> Row:
    sizes = {key: value for key, value in asdict(shape).items() if key not in ("name", "goals", "device")}
    return {
        "bench": "op",
        "shape": shape.name,
        **sizes,
        "measured": measured,
        "backend": name,
        "status": "ok",
        "reason": "",
        "figures": [],
        "flops": shape.flops(measured, mixed=name != SDPA),
        "flop_ratio_limit": round(shape.ratio_limit(measured), 4),
        "one_array_of_maps_mib": round(shape.maps_mib, 2),
    }


def _timed(shape: Shape, measured: str, name: str, times: Times) -> Row:
    found: Row = times.of(name)
    found["gflops_per_s"] = round(shape.flops(measured, mixed=name != SDPA) / found["median_ms"] / 1e6, 1)
    if name != SDPA:
        against = times.ratio(name, SDPA)
        at_most = None if name == "reference" else shape.goals.get(measured)  # it is there to be right
        found["figures"] = [rows.goal(TIME_RATIO, at_most=at_most, **against)]
        found["share_of_flop_limit"] = round(shape.ratio_limit(measured) / against["value"], 4)
    return found


def prepare_memory(shape: Shape, name: str, measured: str) -> tuple[Callable[[], object], str]:
    """What a child process measures: one run on inputs that are there, after a small run that loads libraries.

    Args:
        shape: the call.
        name: `SDPA` or a backend.
        measured: one of `shapes.PASSES`.

    Returns:
        The run, and the device.
    """
    small = replace(shape, batch=1, length=min(shape.length, 64), source=min(shape.source, 64))
    make_call(small, make_inputs(small), name, measured)()
    kept: list[object] = []  # outputs and gradients stay until the peak is read
    run = make_call(shape, make_inputs(shape), name, measured)
    return lambda: kept.append(run()), shape.device


def available_mib(device: str) -> float:
    """Memory that is free now, in MiB."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0]) / 2**20
    info = Path("/proc/meminfo")
    if info.exists():
        line = next(row for row in info.read_text().splitlines() if row.startswith("MemAvailable"))
        return int(line.split()[1]) / 2**10
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2**20
