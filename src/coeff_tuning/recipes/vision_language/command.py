"""`coeff-tuning vl`: train one model on all tasks, measure each, save."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, set_seed

from coeff_tuning.errors import RunError
from coeff_tuning.help_text import HelpFormatter
from coeff_tuning.recipes import distributed, environment, run_folder
from coeff_tuning.recipes.arguments import MethodArguments, RecipeArguments
from coeff_tuning.recipes.configuration import changed
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.methods import save_trained
from coeff_tuning.recipes.vision_language import readers
from coeff_tuning.recipes.vision_language.scoring import evaluate
from coeff_tuning.recipes.vision_language.training import Prepared, make_trainer, prepare

_EXAMPLE = """example (a folder with vqa/, gqa/, nlvr/ and caption/, described in docs/vision-language.md):
  coeff-tuning vl --data data/vl --model_name_or_path facebook/bart-base --method coeff+lora \\
      --lora_r 128 --lora_alpha 32 --lora_dropout 0.1 --num_train_epochs 20 --output_dir runs/vl"""


@dataclass
class VLArguments:
    """Model, data and texts.

    Attributes:
        data: folder of all tasks.
        tasks: tasks that are trained and measured.
        eval_split: what the scores are measured on.
        max_eval_samples: items of each task that are measured.
        model_name_or_path: the language model.
        projection: run whose projection is taken over.
        text_length: longest text.
        num_beams: beams of generation.
    """

    data: str = field(default="", metadata={"help": "Folder with a sub-folder for each task."})
    tasks: list[str] = field(
        default_factory=lambda: list(readers.TASKS), metadata={"help": f"Some of {', '.join(readers.TASKS)}."}
    )
    eval_split: str = field(
        default="val", metadata={"help": "Split that is measured: its file is SPLIT.json, and captions name it."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Measure the first so many items of a task."})
    model_name_or_path: str = field(
        default="facebook/bart-base",
        metadata={"help": "Encoder-decoder or decoder: hub id, local folder, or offline name (smollm2-135m)."},
    )
    projection: str | None = field(
        default=None, metadata={"help": "Folder of a finished run of vl, whose projection is the start of this one's."}
    )
    text_length: int = field(default=20, metadata={"help": "Longest prompt, and longest answer, in tokens."})
    num_beams: int = field(default=5, metadata={"help": "Beams of generation."})


@dataclass
class VLRun:
    """Everything that defines one run.

    Attributes:
        about: model and data.
        method: the method.
        training: `TrainingArguments`.
        resolved: flags that differ from their default, as `config.yaml` holds them.
    """

    about: VLArguments
    method: MethodArguments
    training: RecipeArguments
    resolved: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.training.output_dir))


def parse(argv: list[str]) -> VLRun:
    """Read the flags of a run.

    Args:
        argv: the command line after `vl`.

    Returns:
        The run.

    Raises:
        RunError: a value is impossible, or has no meaning here.
    """
    groups = [VLArguments, MethodArguments, RecipeArguments]
    text = "One language model for several image-text tasks. All flags of transformers.TrainingArguments are taken."
    kwargs = {"description": text, "epilog": _EXAMPLE, "formatter_class": HelpFormatter, "allow_abbrev": False}
    parser = HfArgumentParser(groups, prog="coeff-tuning vl", usage="coeff-tuning vl --data FOLDER [...]", **kwargs)
    given = vars(parser.parse_args(argv))
    given["output_dir"] = given["output_dir"] or f"runs/vl-{given['method']}"
    try:
        about, method, training = parser.parse_dict(given, allow_extra_keys=True)
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(f"these flags do not go together: {error}") from None
    resolved = {**changed(given, parser), "method": method.method, "seed": training.seed}
    if training.world_size > 1:
        resolved["processes"] = training.world_size
    run = VLRun(about, method, training, resolved)
    _check(run)
    return run


def _check(run: VLRun) -> None:
    about, method = run.about, run.method
    if not about.data:
        raise RunError("--data is needed: a folder with vqa, gqa, nlvr and caption, or some of them and --tasks")
    if unknown := [task for task in about.tasks if task not in readers.TASKS]:
        raise RunError(f"--tasks must be some of {', '.join(readers.TASKS)}; got {unknown[0]!r}")
    if method.method == "full":
        raise RunError("--method full is not a method of vl; take linear, coeff, lora, dora, coeff+lora or coeff+dora")
    if method.head_start == "probe":
        raise RunError("--head_start probe is for classifiers; to start from a trained projection, use --projection")
    for name in ("text_length", "num_beams", "max_eval_samples"):
        value = getattr(about, name)
        if value is not None and value < 1:
            raise RunError(f"--{name} must be at least 1; got {value}")
    if distributed.is_sharded(run.training):
        raise RunError("vl cannot be sharded: it generates text with a whole model; train it without FSDP")


def main(argv: list[str]) -> None:
    """Train, measure and save.

    Args:
        argv: the command line after `vl`.
    """
    run = parse(argv)
    metrics = train(run)
    if run.training.process_index == 0:
        scores = "  ".join(f"{name} {metrics[name]:.2f}" for name in (*run.about.tasks, "mean"))
        print(f"{scores}\neverything is in {run.folder}")
    run.training.distributed_state.destroy_process_group()


def train(run: VLRun) -> dict[str, Any]:
    """One run. Under torchrun or accelerate launch every process calls this; the first one measures and writes.

    Args:
        run: what to do.

    Returns:
        What `metrics.json` in the run folder holds, in the first process.
    """
    require("accelerate")
    arguments = run.training
    if "caption" in run.about.tasks:
        require("pycocoevalcap.cider.cider")
    checkpoint = run_folder.start(
        run.folder, run.resolved, arguments.resume_from_checkpoint, overwrite=arguments.overwrite_output_dir
    )
    set_seed(arguments.seed)
    prepared = prepare(run.about, run.method)
    if arguments.process_index == 0:
        run_folder.claim(run.folder, run.resolved, checkpoint)
    trainer = make_trainer(prepared, run.method, arguments)
    started = time.perf_counter()
    with run_folder.writing(run.folder):
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    metrics: dict[str, Any] = {}
    if arguments.process_index == 0:
        metrics = {**_measure(run, prepared), "train_seconds": round(seconds, 2), "resumed": checkpoint is not None}
        metrics |= {"processes": arguments.world_size, **environment.summary()}
        _save(run, prepared, metrics)
    trainer.accelerator.wait_for_everyone()
    return metrics


def _measure(run: VLRun, prepared: Prepared) -> dict[str, Any]:
    about, model = run.about, prepared.model
    scores = {}
    for task in about.tasks:
        items = [item for item in prepared.heldout if item.task == task][: about.max_eval_samples]
        sizes = {"num_beams": about.num_beams, "max_new_tokens": about.text_length}
        scores[task] = evaluate(model, prepared.collator, items, run.training.per_device_eval_batch_size, sizes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "task": "image-text",
        "method": run.method.method,
        "model": about.model_name_or_path,
        "data": about.data,
        "seed": run.training.seed,
        **scores,
        "mean": sum(scores.values()) / len(scores),
        "heldout_split": about.eval_split,
        "heldout_samples": min(len(prepared.heldout), (about.max_eval_samples or len(prepared.heldout)) * len(scores)),
        "train_samples": len(prepared.train),
        "trainable_parameters": trained,
        "visual_width": prepared.loaded.model.config.visual_width,
        "projection_parameters": prepared.projection_parameters,
        "extra_parameters": trained - prepared.projection_parameters,
    }


def _save(run: VLRun, prepared: Prepared, metrics: dict[str, Any]) -> None:
    with run_folder.replacing(run.folder) as folder:
        save_trained(prepared.model, prepared.loaded, run.method.method, folder)
        settings = require("yaml").safe_dump(run.resolved, sort_keys=False)
        (folder / run_folder.CONFIG_FILE).write_text(settings, encoding="utf-8")
        (folder / run_folder.METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
