"""Train coefficients, keep the matrices, and look at the mixed attention maps of held-out samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.plots import coefficients_of
from coeff_tuning.recipes.run_folder import writing
from coeff_tuning.studies import rows
from coeff_tuning.studies.fewshot.settings import Setting
from coeff_tuning.studies.fewshot.study import kept, train
from coeff_tuning.studies.grid import Grid
from coeff_tuning.studies.learnt import picture, report
from coeff_tuning.tuner.checks import coeff_layers
from coeff_tuning.tuner.layer import CHILD_NAME, CoeffLayer

STUDY = "learnt"
# What the search of the few-shot study chose on validation data.
RATES = {"digits": 5e-2, "bbc-news": 1e-2}
_DEFAULT_RATE = 1e-2
_SAMPLES = 32
_ROUNDING = 1e-6  # a softmax may sum to a little more than 1
PARTS = {
    "diagonal": lambda delta: delta.diagonal().diag(),
    "off the diagonal": lambda delta: delta - delta.diagonal().diag(),
    "none": torch.zeros_like,
}


def run_all(folder: Path, settings: list[Setting], seeds: list[int]) -> list[rows.Row]:
    """Do what has not been done yet.

    Args:
        folder: for `rows.jsonl`.
        settings: classifiers of the few-shot study.
        seeds: seeds.

    Returns:
        All rows in the folder.
    """
    grid = Grid(STUDY, folder)
    flags = {setting.name: {**setting.flags, "coeff_learning_rate": _rate(setting)} for setting in settings}
    grid.check(lambda row: {"flags": flags[row["setting"]]} if row["setting"] in flags else {})
    jobs = [(setting, {"setting": setting.name, "seed": seed}) for setting in settings for seed in seeds]
    for number, (setting, job) in enumerate(jobs, start=1):
        is_done = grid.find("final", job) is not None
        name = f"{job['setting']}, seed {job['seed']}{': done' if is_done else ''}"
        print(f"[{number}/{len(jobs)}] {name}", flush=True)
        if not is_done:
            measured = {"weights": setting.weights, "data": setting.data, "flags": flags[setting.name]}
            measured |= _measure(setting, {**flags[setting.name], "seed": job["seed"]})
            grid.store("final", job, measured)
    return grid.stored["final"]


def _rate(setting: Setting) -> float:
    return RATES.get(setting.name, _DEFAULT_RATE)


def _measure(setting: Setting, flags: dict[str, Any]) -> rows.Row:
    if setting.folder is not None:
        flags["dataset"] = setting.folder
    trainer, metrics = train(setting.task, {**flags, "method": "coeff"})
    if "accuracy" not in metrics:
        raise RunError(f"setting {setting.name!r} must be a classifier; its task is {setting.task!r}")
    model = trainer.model.eval()
    parts = {name: _accuracy_of(trainer, change) for name, change in PARTS.items()}
    matrices = coefficients_of(model)
    samples = [trainer.eval_dataset[i] for i in range(min(_SAMPLES, len(trainer.eval_dataset)))]
    ranges = ranges_of_maps(model, [trainer.data_collator([sample]) for sample in samples])
    layers = [
        {"layer": name, "delta": (matrix - torch.eye(len(matrix)).numpy()).round(6).tolist(), **seen}
        for (name, matrix), seen in zip(matrices.items(), ranges, strict=True)
    ]
    return {**kept(metrics), "accuracy_with": parts, "map_samples": len(samples), "layers": layers}


def _accuracy_of(trainer: Any, change: Any) -> float:
    """Test accuracy with a part of each matrix, and the head as it was trained beside the whole."""
    deltas = [layer.coeff_delta["default"] for _, layer in coeff_layers(trainer.model)]
    before = [delta.detach().clone() for delta in deltas]
    with torch.no_grad():
        for delta in deltas:
            delta.copy_(change(delta))
        accuracy = trainer.evaluate()["eval_accuracy"]
        for delta, former in zip(deltas, before, strict=True):
            delta.copy_(former)
    return float(accuracy)


def ranges_of_maps(model: Any, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the mixed attention maps of each layer hold.

    Args:
        model: a PEFT model of transformers with coefficients, in eval mode; it runs with eager attention meanwhile.
        batches: inputs without padding.

    Returns:
        For each layer with coefficients, in order: smallest and largest entry, number of entries, and shares of those
        that are below 0 and above 1.

    Raises:
        RunError: the model does not return its maps.
    """
    hosts = [m for m in model.modules() if isinstance(getattr(m, CHILD_NAME, None), CoeffLayer)]
    found = [{"min": float("inf"), "max": -float("inf"), "entries": 0, "below": 0, "above": 0} for _ in hosts]
    with torch.no_grad(), _eager(model.get_base_model()):
        hooks = [host.register_forward_hook(_recorder(own)) for host, own in zip(hosts, found, strict=True)]
        for batch in batches:
            model(**batch)
        for hook in hooks:
            hook.remove()
    return [{**own, "below": own["below"] / own["entries"], "above": own["above"] / own["entries"]} for own in found]


def _recorder(own: dict[str, Any]) -> Any:
    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        maps = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(maps, Tensor):
            raise RunError(
                f"{type(module).__name__} must return its attention maps; it returned none with eager attention"
            )
        own["min"], own["max"] = min(own["min"], float(maps.min())), max(own["max"], float(maps.max()))
        own["entries"] += maps.numel()
        own["below"] += int((maps < -_ROUNDING).sum())
        own["above"] += int((maps > 1 + _ROUNDING).sum())

    return see


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    former = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(former)


def write(folder: Path) -> None:
    """Print and write tables and figure from the rows that a folder holds; nothing is trained.

    Args:
        folder: with `rows.jsonl`; `summary.md` and `learnt.png` are replaced.

    Raises:
        RunError: it holds no rows.
    """
    found = Grid(STUDY, folder).stored["final"]
    if not found:
        raise RunError("there are no rows yet; run the study without --report first")
    report.show(found)
    rows.write_text(folder / "summary.md", report.page(found))
    with writing(folder):
        picture.draw(found, folder / "learnt.png")
    print(f"written to {folder}: rows.jsonl, summary.md, learnt.png")
