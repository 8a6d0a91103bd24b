"""The flags of `coeff-tuning bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from coeff_tuning.bench import model, op, plot, report, rows, shapes
from coeff_tuning.errors import BenchError

_OP_EXAMPLE = """examples:
  coeff-tuning bench op
  coeff-tuning bench op --shapes vit B=1,H=12,L=2048,causal --backends chunked --threads 2 --output rows.jsonl
  coeff-tuning bench op --shapes sweep-length --output sweep.json --plot sweep.png
  coeff-tuning bench op --shapes B=1,H=12,L=16384 --backends chunked --memory-only
shapes by name: {names}"""
_MODEL_EXAMPLE = """example:
  coeff-tuning bench model --cases minilm load --threads 2 --output models.json
cases: {names}"""
_PLOT_EXAMPLE = """example:
  coeff-tuning bench plot docs/results/op-scaling.json scaling.png"""


def main(argv: list[str]) -> None:
    """Run `bench op`, `bench model` or `bench plot`.

    Args:
        argv: the command line after `bench`.

    Raises:
        BenchError: an argument is wrong, or something that was measured computes a wrong result.
    """
    parser = argparse.ArgumentParser(
        "coeff-tuning bench", description="Speed and memory beside torch's own attention and beside LoRA."
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, summary, add in (
        ("op", "the op: every backend against torch's own attention", _add_op),
        ("model", "whole models: training steps against LoRA, generation, many adapters, loading", _add_model),
        ("plot", "draw stored rows of 'bench op'", _add_plot),
    ):
        description = f"{summary[0].upper()}{summary[1:]}."
        raw = argparse.RawDescriptionHelpFormatter
        add(commands.add_parser(name, help=summary, description=description, formatter_class=raw))
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--repeats", type=int, help="timed runs of each; default: as many as take 20 s, at least 5")
    parser.add_argument("--output", help="rows: .jsonl is appended to, .json is replaced")


def _add_op(parser: argparse.ArgumentParser) -> None:
    names = ", ".join([*shapes.TABLE, *shapes.SWEEPS])
    parser.epilog = _OP_EXAMPLE.format(names=names)
    parser.add_argument("--shapes", nargs="+", default=[], help="names or sizes; default: the table of the device")
    parser.add_argument("--backends", nargs="+", help="default: all that serve the call")
    parser.add_argument("--dtype", choices=["float64", "float32", "bfloat16", "float16"], help="default: the table's")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--forward-only", action="store_true", help="leave forward+backward out")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--time-only", action="store_true", help="leave memory out")
    only.add_argument("--memory-only", action="store_true", help="leave time, and the check at full size, out")
    parser.add_argument("--plot", help="PNG of time and memory, for a sweep")
    _add_common(parser)
    parser.set_defaults(run=_run_op)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _MODEL_EXAMPLE.format(names=", ".join(model.CASES))
    parser.add_argument("--cases", nargs="+", default=[], help="default: all")
    parser.add_argument("--time-only", action="store_true", help="leave memory out")
    _add_common(parser)
    parser.set_defaults(run=_run_model)


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _PLOT_EXAMPLE
    parser.add_argument("rows", help=".json or .jsonl file of 'bench op'")
    parser.add_argument("png", help="file to write")
    parser.set_defaults(run=lambda given: plot.plot_op(rows.read(Path(given.rows)), Path(given.png)))


def _run_op(arguments: argparse.Namespace) -> None:
    _start(arguments)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda needs a CUDA device that torch can use; there is none")
    options = op.OpOptions(
        shapes.parse_shapes(arguments.shapes, device, arguments.dtype),
        arguments.backends,
        (shapes.FORWARD,) if arguments.forward_only else shapes.PASSES,
        arguments.repeats,
        time=not arguments.memory_only,
        memory=not arguments.time_only,
    )
    store = rows.Store(arguments.output)
    op.run_op(options, store)
    report.print_op(store.rows)
    if arguments.plot:
        plot.plot_op(store.rows, Path(arguments.plot))
    _finish(store)


def _run_model(arguments: argparse.Namespace) -> None:
    _start(arguments)
    store = rows.Store(arguments.output)
    model.run_model(arguments.cases, arguments.repeats, store, memory=not arguments.time_only)
    report.print_models(store.rows)
    _finish(store)


def _start(arguments: argparse.Namespace) -> None:
    for name in ("threads", "repeats"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BenchError(f"--{name} must be at least 1; got {value}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)


def _finish(store: rows.Store) -> None:
    """Say where the rows are; a wrong result is an error, after everything else was measured and shown."""
    if store.path is not None:
        print(f"rows written to {store.path}")
    wrong = [
        f"{row.get('backend', row.get('variant'))}: {row['reason']}" for row in store.rows if row["status"] == "wrong"
    ]
    if wrong:
        raise BenchError("wrong results: " + "; ".join(dict.fromkeys(wrong)))
