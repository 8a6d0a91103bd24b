"""What a run says when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coeff_tuning.recipes import assets
from coeff_tuning.recipes.configuration import Run
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.methods import HEAD_FILE
from coeff_tuning.recipes.models import model_class


def print_run(run: Run, metrics: dict[str, Any]) -> None:
    """Print the score, the parameters, the files and the Python lines that load the result.

    Args:
        run: the run.
        metrics: from `train.train`.
    """
    console = require("rich.console").Console(highlight=False, soft_wrap=True)
    console.print(score_line(metrics))
    console.print(f"saved in {run.folder}: {', '.join(saved_files(run.folder))}", markup=False)
    console.print("\nload it in Python:\n", markup=False)
    console.print(loading_lines(run, metrics), markup=False)


def score_line(metrics: dict[str, Any]) -> str:
    """One line with score and parameters.

    Args:
        metrics: content of `metrics.json`.

    Returns:
        The line.
    """
    name = "accuracy" if "accuracy" in metrics else "perplexity"
    what = "blocks" if name == "perplexity" else "samples"
    return (
        f"{metrics['method']}: {name} {metrics[name]:.4f} on {metrics['heldout_samples']} held-out {what}, "
        f"{metrics['extra_parameters']:,} extra numbers + {metrics['head_parameters']:,} in the head, "
        f"{metrics['train_seconds']:.0f} s"
    )


def saved_files(folder: Path) -> list[str]:
    """Names of the files of a run, without checkpoints.

    Args:
        folder: run folder.

    Returns:
        Sorted names, relative to the folder.
    """
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(p) for p in files if not p.parts[0].startswith("checkpoint-"))


def loading_lines(run: Run, metrics: dict[str, Any]) -> str:
    """Python that loads what a run trained; it runs as it is printed.

    Args:
        run: the run.
        metrics: its `metrics.json`.

    Returns:
        The lines; the last one assigns `model`.
    """
    method, name = run.method.method, run.model.model_name_or_path
    cls = model_class(run.task, run.model)
    imports = [f"from {_public_module(cls)} import {cls.__name__}"]
    source = repr(name)
    if name in assets.MODELS and method != "full":
        imports.insert(0, "from coeff_tuning.recipes.assets import resolve_model")
        source = f"resolve_model({name!r})"
    labels = f", num_labels={len(metrics['labels'])}" if metrics["labels"] else ""
    folder = str(run.folder)
    base = f"{cls.__name__}.from_pretrained({source}{labels})"
    if method == "full":
        body = [f"model = {cls.__name__}.from_pretrained({folder!r})"]
    elif method == "linear":
        imports.append("from safetensors.torch import load_file")
        head = str(run.folder / HEAD_FILE)
        body = [f"model = {base}", f"model.load_state_dict(load_file({head!r}), strict=False)"]
    else:
        if "+" in method:
            imports.insert(0, "from coeff_tuning import load_coeff")
            load = "load_coeff"
        else:
            imports += ["from peft import PeftModel"]
            imports[:0] = ["import coeff_tuning"] if method == "coeff" else []
            load = "PeftModel.from_pretrained"
        body = [f"model = {base}", f"model = {load}(model, {folder!r})"]
    return "\n".join([*imports, "", *body])


def _public_module(cls: Any) -> str:
    return "transformers" if cls.__module__.startswith("transformers.") else str(cls.__module__)
