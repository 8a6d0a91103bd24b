"""The flags of `coeff-tuning study`."""

from __future__ import annotations

import argparse
from pathlib import Path

from coeff_tuning.errors import RunError

_HULL_EXAMPLE = """example (about a minute and a half):
  coeff-tuning study hull --seeds 0,1,2,3,4 --output_dir runs/hull"""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and examples printed line by line."""


def main(argv: list[str]) -> None:
    """Run a study.

    Args:
        argv: the command line after `study`.
    """
    parser = argparse.ArgumentParser("coeff-tuning study", description="The paper's evidence, one command each.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="NAME")
    for name, summary, add in (
        ("hull", "toy study: coefficients break out of the convex hull of the values", _add_hull),
    ):
        description = f"{summary[0].upper()}{summary[1:]}."
        add(commands.add_parser(name, help=summary, description=description, formatter_class=_Formatter))
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def _add_hull(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _HULL_EXAMPLE
    parser.add_argument("--seeds", default="0,1,2,3,4", help="separated by commas; the first is drawn")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each layer")
    parser.add_argument("--output_dir", default="runs/hull", help="for hull.jsonl, hull.png and hull.gif")
    parser.set_defaults(run=_run_hull)


def _run_hull(arguments: argparse.Namespace) -> None:
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.studies.hull.command import study

    if arguments.steps < 1:
        raise RunError(f"--steps must be at least 1; got {arguments.steps}")
    study(parse_seeds(arguments.seeds), arguments.steps, Path(arguments.output_dir))
