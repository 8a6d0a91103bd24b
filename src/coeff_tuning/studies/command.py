"""The flags of `coeff-tuning study`."""

from __future__ import annotations

import argparse
from pathlib import Path

from coeff_tuning.errors import RunError
from coeff_tuning.help_text import HelpFormatter

_HULL_EXAMPLE = """example (about a minute and a half):
  coeff-tuning study hull --seeds 0,1,2,3,4 --output_dir runs/hull"""

_VTAB_EXAMPLE = """example (two methods on one task; the same command goes on where it was interrupted):
  coeff-tuning study vtab --root data/vtab-1k --tasks cifar --methods fact,coeff+fact --seeds 0,1,2 \\
      --output_dir runs/vtab"""

_FEWSHOT_EXAMPLE = """examples (the same command goes on where it was interrupted):
  coeff-tuning study fewshot --settings digits,bbc-news --methods linear,coeff,lora --seeds 0,1,2
  coeff-tuning study fewshot --settings clothing,my.yaml --data clothing=path/to/images --output_dir runs/mine
  coeff-tuning study fewshot --report --output_dir docs/results/fewshot"""

_LEARNT_EXAMPLE = """example (a minute for each seed; the same command goes on where it was interrupted):
  coeff-tuning study learnt --settings digits,bbc-news --seeds 0,1,2 --output_dir runs/learnt"""

_HEADS_EXAMPLE = """example (minutes for each seed; the same command goes on where it was interrupted):
  coeff-tuning study heads --heads 1,2,4,8,16 --seeds 0,1,2,3,4 --output_dir runs/heads"""

_SCENES_EXAMPLE = """example (half an hour for each seed; the same command goes on where it was interrupted):
  coeff-tuning study scenes --methods linear,coeff,lora,coeff+lora --seeds 0,1,2 --output_dir runs/scenes"""

_SCALE_EXAMPLE = """example (from the rows of this repository, nothing is trained):
  coeff-tuning study scale --measured docs/results/op-speed.jsonl --output_dir runs/scale"""


def main(argv: list[str]) -> None:
    """Run a study.

    Args:
        argv: the command line after `study`.
    """
    parser = argparse.ArgumentParser("coeff-tuning study", description="The paper's evidence, one command each.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="NAME")
    for name, summary, add in (
        ("hull", "toy study: coefficients break out of the convex hull of the values", _add_hull),
        ("vtab", "VTAB-1k: a vision transformer with coefficients and other methods, on 19 tasks", _add_vtab),
        ("fewshot", "few samples, real weights: coefficients, LoRA, DoRA and the converged probe", _add_fewshot),
        ("learnt", "what coefficients become: their matrices, and the attention maps they make", _add_learnt),
        ("heads", "one width with 1 to 16 heads: what coefficients add to the converged probe", _add_heads),
        ("scenes", "rendered scenes: a language model that sees, on four image-text tasks", _add_scenes),
        ("scale", "what coefficients cost as models grow, from published shapes", _add_scale),
    ):
        description = f"{summary[0].upper()}{summary[1:]}."
        add(commands.add_parser(name, help=summary, description=description, formatter_class=HelpFormatter))
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


def _add_vtab(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _VTAB_EXAMPLE
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--root", required=True, help="folder of all tasks: ROOT/cifar/train800.txt and so on")
    parser.add_argument("--tasks", default="all", help="separated by commas")
    parser.add_argument("--methods", default="linear,coeff,lora,coeff+lora,fact,coeff+fact", help="'all', or some")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--model", default="vit_base_patch16_224.augreg_in21k", help="a model of timm")
    parser.add_argument("--pretrained", action=switch, default=True, help="load its weights")
    parser.add_argument("--normalise", default="imagenet", choices=["imagenet", "half", "none"], help="of pixels")
    parser.add_argument("--search", action=switch, default=True, help="choose settings on val200 first")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images")
    parser.add_argument("--output_dir", default="runs/vtab", help="for rows.jsonl, search.jsonl and summary.md")
    parser.set_defaults(run=_run_vtab)


def _run_vtab(arguments: argparse.Namespace) -> None:
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.studies.vtab import tasks
    from coeff_tuning.studies.vtab.recipes import RECIPES
    from coeff_tuning.studies.vtab.study import study
    from coeff_tuning.studies.vtab.training import Options

    if arguments.epochs is not None and arguments.epochs < 1:
        raise RunError(f"--epochs must be at least 1; got {arguments.epochs}")
    names = ("model", "pretrained", "normalise", "epochs", "search", "workers")
    study(
        Path(arguments.root),
        Path(arguments.output_dir),
        tasks.parse(arguments.tasks, list(tasks.CLASSES), "--tasks"),
        tasks.parse(arguments.methods, list(RECIPES), "--methods"),
        parse_seeds(arguments.seeds),
        Options(**{name: getattr(arguments, name) for name in names}),
    )


def _add_fewshot(parser: argparse.ArgumentParser) -> None:
    from coeff_tuning.studies.fewshot.settings import DEFAULT

    parser.epilog = _FEWSHOT_EXAMPLE
    parser.add_argument("--settings", default=",".join(DEFAULT), help="names and config files of train, by commas")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="folders that settings need")
    parser.add_argument("--methods", default="main", help="main, ablation, combination, defaults, or names")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="separated by commas; a language model takes three")
    parser.add_argument("--report", action="store_true", help="train nothing: tables and figure from stored rows")
    parser.add_argument("--output_dir", default="runs/fewshot", help="for rows, search.jsonl, summary.md, fewshot.png")
    parser.set_defaults(run=_run_fewshot)


def _run_fewshot(arguments: argparse.Namespace) -> None:
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.studies.fewshot import methods, settings, study

    folder = Path(arguments.output_dir)
    if not arguments.report:
        folders = settings.parse_folders(arguments.data)
        chosen = [settings.make(name, folders) for name in arguments.settings.split(",")]
        study.run_all(folder, chosen, methods.parse(arguments.methods), parse_seeds(arguments.seeds))
    study.write(folder)


def _add_learnt(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _LEARNT_EXAMPLE
    parser.add_argument("--settings", default="digits,bbc-news", help="classifiers of study fewshot, by commas")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="folders that settings need")
    parser.add_argument("--seeds", default="0,1,2", help="at least two, separated by commas")
    parser.add_argument("--report", action="store_true", help="train nothing: tables and figure from stored rows")
    parser.add_argument("--output_dir", default="runs/learnt", help="for rows.jsonl, summary.md and learnt.png")
    parser.set_defaults(run=_run_learnt)


def _run_learnt(arguments: argparse.Namespace) -> None:
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.studies.fewshot import settings
    from coeff_tuning.studies.learnt import study

    folder, seeds = Path(arguments.output_dir), parse_seeds(arguments.seeds)
    if len(seeds) < 2:
        raise RunError(f"--seeds must be at least two, whose matrices are compared; got {arguments.seeds!r}")
    if not arguments.report:
        folders = settings.parse_folders(arguments.data)
        study.run_all(folder, [settings.make(name, folders) for name in arguments.settings.split(",")], seeds)
    study.write(folder)


def _add_heads(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _HEADS_EXAMPLE
    parser.add_argument("--heads", default="1,2,4,8,16", help="numbers of heads, separated by commas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="separated by commas")
    parser.add_argument("--report", action="store_true", help="train nothing: table and figure from stored rows")
    parser.add_argument("--output_dir", default="runs/heads", help="for rows, search.jsonl, summary.md, heads.png")
    parser.set_defaults(run=_run_heads)


def _run_heads(arguments: argparse.Namespace) -> None:
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.studies.heads import study

    folder = Path(arguments.output_dir)
    if not arguments.report:
        study.run_all(folder, study.parse_heads(arguments.heads), parse_seeds(arguments.seeds))
    study.write(folder)


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _SCENES_EXAMPLE
    parser.add_argument("--methods", default="linear,coeff,lora,coeff+lora", help="some of these, by commas")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--data_dir", help="for scenes and projections, made where missing; default: OUTPUT_DIR/data")
    parser.add_argument("--report", action="store_true", help="train nothing: tables and figures from stored rows")
    parser.add_argument("--output_dir", default="runs/scenes", help="for rows, search.jsonl, summary.md, two figures")
    parser.set_defaults(run=_run_scenes)


def _run_scenes(arguments: argparse.Namespace) -> None:
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.studies.scenes import study
    from coeff_tuning.studies.vtab.tasks import parse

    folder = Path(arguments.output_dir)
    if not arguments.report:
        methods = parse(arguments.methods, list(study.METHODS), "--methods")
        where = Path(arguments.data_dir) if arguments.data_dir else folder / "data"
        study.run_all(folder, methods, parse_seeds(arguments.seeds), where)
    study.write(folder)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _SCALE_EXAMPLE
    parser.add_argument(
        "--measured", default="docs/results/op-speed.jsonl", help="rows of bench op, for the projection"
    )
    parser.add_argument("--output_dir", default="runs/scale", help="for rows.jsonl, summary.md and scale.png")
    parser.set_defaults(run=_run_scale)


def _run_scale(arguments: argparse.Namespace) -> None:
    from coeff_tuning.studies.scale.study import study

    study(Path(arguments.measured), Path(arguments.output_dir))
