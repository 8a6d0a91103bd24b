"""Load a finished run and use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coeff_tuning.errors import DataError, RunError
from coeff_tuning.recipes import run_folder
from coeff_tuning.recipes.checks import IMAGE_SUFFIXES
from coeff_tuning.recipes.configuration import Run, parse_run
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.methods import load_trained
from coeff_tuning.recipes.models import LoadedModel, load_model
from coeff_tuning.recipes.tasks import make_collator

_BATCH = 32


@dataclass
class Predictor:
    """A trained model with what it needs to read its input.

    Attributes:
        run: the run it came from.
        loaded: pretrained model, head and processor.
        model: the trained model, in eval mode.
        labels: names of the classes; empty for causal-lm.
    """

    run: Run
    loaded: LoadedModel
    model: Any
    labels: list[str]


def load_run(folder: str | Path) -> Predictor:
    """Load what a run trained onto its pretrained model.

    Args:
        folder: a finished run.

    Returns:
        The predictor.

    Raises:
        RunError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"run folder {folder} does not exist")
    labels = run_folder.read_metrics(folder)["labels"]
    config = folder / run_folder.CONFIG_FILE
    task = run_folder.read_metrics(folder)["task"]
    run = parse_run([task, "--config", str(config), "--output_dir", str(folder)])
    whole = str(folder) if run.method.method == "full" else None
    loaded = load_model(run.task, run.model, labels, whole)
    return Predictor(run, loaded, load_trained(loaded, run.method.method, folder), labels)


def classify(predictor: Predictor, inputs: list[str]) -> list[dict[str, float]]:
    """Probabilities of every class for every input.

    Args:
        predictor: from `load_run`, of a classifier.
        inputs: texts or paths of images, by the run's task.

    Returns:
        For each input, probabilities by label, highest first.

    Raises:
        DataError: an image cannot be read.
    """
    import torch

    collate = make_collator(predictor.run, predictor.loaded)
    encode = _encode_image if predictor.run.task == "image-classification" else _encode_text
    results = []
    for start in range(0, len(inputs), _BATCH):
        batch = collate([encode(predictor, item) for item in inputs[start : start + _BATCH]])
        with torch.no_grad():
            probabilities = predictor.model(**batch).logits.float().softmax(-1)
        for row in probabilities.tolist():
            pairs = sorted(zip(predictor.labels, row, strict=True), key=lambda pair: -pair[1])
            results.append(dict(pairs))
    return results


def generate(predictor: Predictor, prompts: list[str], max_new_tokens: int = 40) -> list[str]:
    """Continue texts, greedily.

    Args:
        predictor: from `load_run`, of a causal-lm run.
        prompts: beginnings.
        max_new_tokens: length of each continuation.

    Returns:
        Prompt and continuation, for each prompt.
    """
    tokenizer = predictor.loaded.processor
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = predictor.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return texts


def read_inputs(predictor: Predictor, arguments: list[str]) -> list[str]:
    """Expand what was typed into single inputs.

    Args:
        predictor: says whether images or texts are expected.
        arguments: for images, files or folders of them; for texts, the texts themselves or `.txt` files with one
            text per line.

    Returns:
        Image paths or texts.

    Raises:
        DataError: a file does not exist or holds nothing.
    """
    inputs: list[str] = []
    is_image = predictor.run.task == "image-classification"
    for argument in arguments:
        path = Path(argument)
        if is_image and path.is_dir():
            inputs += sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif is_image:
            if not path.is_file():
                raise DataError(f"image {argument} does not exist")
            inputs.append(argument)
        elif argument.endswith(".txt"):
            if not path.is_file():
                raise DataError(f"text file {argument} does not exist")
            inputs += [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            inputs.append(argument)
    if not inputs:
        raise DataError(f"no input found in {', '.join(arguments)}")
    return inputs


def show(predictor: Predictor, arguments: list[str], top: int = 3) -> None:
    """Predict and print.

    Args:
        predictor: from `load_run`.
        arguments: as for `read_inputs`.
        top: classes shown per input.
    """
    console = require("rich.console").Console()
    inputs = read_inputs(predictor, arguments)
    if predictor.run.task == "causal-lm":
        for text in generate(predictor, inputs):
            console.print(text, markup=False)
        return
    top = min(top, len(predictor.labels))
    table = require("rich.table").Table("input", *(f"{n}. label" for n in range(1, top + 1)))
    escape = require("rich.markup").escape
    for item, probabilities in zip(inputs, classify(predictor, inputs), strict=True):
        best = list(probabilities.items())[:top]
        table.add_row(escape(item[:60]), *(f"{escape(label)} {value:.3f}" for label, value in best))
    console.print(table)


def _encode_text(predictor: Predictor, text: str) -> dict[str, Any]:
    length = predictor.run.model.max_seq_length
    return dict(predictor.loaded.processor(text, truncation=True, max_length=length))


def _encode_image(predictor: Predictor, path: str) -> dict[str, Any]:
    try:
        with require("PIL.Image").open(path) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from None
    return {"pixel_values": predictor.loaded.processor(pixels, return_tensors="pt")["pixel_values"][0]}
