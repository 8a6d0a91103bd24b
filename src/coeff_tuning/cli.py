"""The `coeff-tuning` command. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from coeff_tuning import __version__
from coeff_tuning.errors import CoeffTuningError
from coeff_tuning.help_text import HelpFormatter
from coeff_tuning.recipes.distributed import require_one_process

_EXAMPLES = {
    "train": """example (16 documents of each class, about a minute on a laptop):
  coeff-tuning train text-classification --model_name_or_path minilm --dataset bbc-news \\
      --method coeff --train_samples_per_class 16 --output_dir runs/bbc""",
    "predict": """example:
  coeff-tuning predict runs/bbc "Shares rose after the bank reported record profits." """,
    "compare": """example:
  coeff-tuning compare examples/configs/bbc-news-minilm.yaml \\
      --methods linear,coeff,lora,coeff+lora --seeds 0,1,2 --output_dir runs/compare-bbc""",
    "sweep": """example:
  coeff-tuning sweep examples/configs/bbc-news-minilm.yaml \\
      --methods coeff,lora --seeds 0,1,2,3,4 --output_dir runs/compare-bbc""",
    "demo": """example:
  coeff-tuning demo --output_dir runs/demo""",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the command line without the program. Default: that of this process.

    Returns:
        0, or 2 after an error that was printed as one line; 130 when interrupted.
    """
    parser = argparse.ArgumentParser("coeff-tuning", description="Tune attention models with a few hundred numbers.")
    parser.add_argument("--version", action="version", version=f"coeff-tuning {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    handlers: dict[str, tuple[Callable[[list[str]], None], str]] = {
        "train": (_train, "fine-tune a model and save a run folder"),
        "predict": (_predict, "use a finished run on images or texts"),
        "compare": (_compare, "run several methods and seeds, and make one table"),
        "sweep": (_sweep, "the rows of compare at once, on Ray"),
        "bench": (_bench, "speed and memory of the op and of whole models"),
        "study": (_study, "the paper's evidence, one command each"),
        "vl": (_vl, "images and text: one language model for VQA, GQA, NLVR2 and captions"),
        "demo": (_demo, "coefficients against the linear probe on handwritten digits"),
    }
    for name, (_, summary) in handlers.items():
        commands.add_parser(name, help=summary, add_help=False)
    argv = sys.argv[1:] if argv is None else argv
    command, rest = parser.parse_args(argv[:1]).command, argv[1:]
    try:
        if command not in ("train", "vl"):
            require_one_process(command)
        handlers[command][0](rest)
    except CoeffTuningError as error:
        print(f"coeff-tuning: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("coeff-tuning: interrupted; started again, compare, sweep and the studies go on,", file=sys.stderr)
        print("train does with --resume_from_checkpoint true", file=sys.stderr)
        return 130
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"coeff-tuning {command}", description=description, epilog=_EXAMPLES[command], formatter_class=HelpFormatter
    )


def _train(argv: list[str]) -> None:
    from coeff_tuning.recipes.configuration import build_parser, parse_run

    parser = build_parser(
        prog="coeff-tuning train",
        usage="coeff-tuning train TASK [--flag value ...]",
        description="Fine-tune a model. All flags of transformers.TrainingArguments are taken.",
        epilog=_EXAMPLES["train"],
        formatter_class=HelpFormatter,
    )
    run = parse_run(argv, parser)
    from coeff_tuning.recipes.report import print_run
    from coeff_tuning.recipes.train import train

    metrics = train(run)
    if run.training.process_index == 0:
        print_run(run, metrics)
    run.training.distributed_state.destroy_process_group()


def _predict(argv: list[str]) -> None:
    parser = _parser("predict", "Print labels with probabilities, or generated text.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("input", nargs="+", help="texts, .txt files with one text per line, images or folders of them")
    parser.add_argument("--top", type=int, default=3, help="classes shown per input")
    arguments = parser.parse_args(argv)
    from coeff_tuning.recipes.predict import load_run, show

    show(load_run(arguments.run), arguments.input, arguments.top)


def _table_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = _parser(command, description)
    parser.add_argument("config", help="YAML file with 'task' and the flags of train")
    parser.add_argument("--methods", default="linear,coeff,lora,coeff+lora", help="separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--output_dir", default="runs/compare", help="holds one run folder per row, and the table")
    return parser


def _compare(argv: list[str]) -> None:
    parser = _table_parser("compare", "Run methods and seeds of one config. Further flags go to every run.")
    arguments, flags = parser.parse_known_args(argv)
    from coeff_tuning.recipes.compare import compare, parse_seeds

    seeds = parse_seeds(arguments.seeds)
    compare(arguments.config, arguments.methods.split(","), seeds, arguments.output_dir, flags)


def _sweep(argv: list[str]) -> None:
    parser = _table_parser("sweep", "The rows of compare, on Ray Tune. Further flags go to every run.")
    parser.add_argument("--address", default=None, help="of a Ray cluster, or 'auto'; without it, this machine")
    parser.add_argument("--cpus_per_row", type=int, default=1, help="processors and threads of a row")
    parser.add_argument("--gpus_per_row", type=float, default=0, help="GPUs of a row; a part of one lets rows share it")
    arguments, flags = parser.parse_known_args(argv)
    from coeff_tuning.recipes.compare import parse_seeds
    from coeff_tuning.recipes.sweep import sweep

    seeds, methods = parse_seeds(arguments.seeds), arguments.methods.split(",")
    resources = {"cpus_per_row": arguments.cpus_per_row, "gpus_per_row": arguments.gpus_per_row}
    sweep(arguments.config, methods, seeds, arguments.output_dir, flags, arguments.address, **resources)


def _bench(argv: list[str]) -> None:
    from coeff_tuning.bench.command import main as bench

    bench(argv)


def _study(argv: list[str]) -> None:
    from coeff_tuning.studies.command import main as study

    study(argv)


def _vl(argv: list[str]) -> None:
    from coeff_tuning.recipes.vision_language.command import main as vl

    vl(argv)


def _demo(argv: list[str]) -> None:
    parser = _parser("demo", "DINOv2 ViT-S/14 on handwritten digits: 432 coefficients against the linear probe.")
    parser.add_argument("--output_dir", default="runs/demo", help="where the runs are saved")
    parser.add_argument("--seed", type=int, default=0, help="draws the training images")
    arguments = parser.parse_args(argv)
    from coeff_tuning.recipes.demo import demo

    demo(arguments.output_dir, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
