"""Search on validation data, final runs on test data; one row for each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from coeff_tuning.recipes.run_folder import writing
from coeff_tuning.studies import rows
from coeff_tuning.studies.fewshot import picture, report, scores
from coeff_tuning.studies.fewshot.methods import METHODS, served
from coeff_tuning.studies.fewshot.settings import Setting
from coeff_tuning.studies.grid import Grid

STUDY = "fewshot"
SEARCH_SEED = 100  # none of the usual seeds of final runs
_SEARCH_SAMPLES = 200
_QUIET = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
_KEPT = (
    "loss",
    "heldout_split",
    "heldout_samples",
    "train_samples",
    "extra_parameters",
    "head_parameters",
    "train_seconds",
)


def run_all(folder: Path, settings: list[Setting], methods: list[str], seeds: list[int]) -> list[rows.Row]:
    """Do what has not been done yet: one setting after the other, in each one seed after the other.

    Args:
        folder: for `rows.jsonl` and `search.jsonl`.
        settings: settings.
        methods: some of `METHODS`.
        seeds: seeds.

    Returns:
        All rows of final runs in the folder.
    """
    grid = Grid(STUDY, folder)
    about = {setting.name: _about(setting) for setting in settings}
    grid.check(lambda row: about.get(row["setting"], {}))
    jobs = [
        (setting, {"setting": setting.name, "method": method, "seed": seed})
        for setting in settings
        for seed in setting.seeds(seeds)
        for method in served(setting.task, methods)
    ]
    for number, (setting, job) in enumerate(jobs, start=1):
        is_done = grid.find("final", job) is not None
        name = f"{job['setting']}, {job['method']}, seed {job['seed']}{': done' if is_done else ''}"
        print(f"[{number}/{len(jobs)}] {name}", flush=True)
        if not is_done:
            _final(grid, setting, job)
    return grid.stored["final"]


def _final(grid: Grid, setting: Setting, job: dict[str, Any]) -> None:
    candidates = METHODS[job["method"]].tried(setting.search)
    chosen: rows.Row = {"settings": candidates[0], "validation": None}
    if len(candidates) > 1:
        search = {**job, "seed": SEARCH_SEED}
        samples = min(setting.flags.get("max_eval_samples") or _SEARCH_SAMPLES, _SEARCH_SAMPLES)
        validation = {"eval_split": "validation", "max_eval_samples": samples}
        best = grid.search(
            search, candidates, lambda tried: _measure(setting, search, {**tried, **validation}), scores.rank
        )
        chosen = {"settings": best["settings"], "validation": best[scores.score(best)]}
    grid.store("final", job, {**chosen, **_measure(setting, job, chosen["settings"])})


def _about(setting: Setting) -> rows.Row:
    return {"task": setting.task, "flags": setting.flags, "weights": setting.weights, "data": setting.data}


def _measure(setting: Setting, job: dict[str, Any], further: dict[str, Any]) -> rows.Row:
    flags = {**setting.flags, **METHODS[job["method"]].flags, **further, "seed": job["seed"]}
    if setting.folder is not None:
        flags["dataset"] = setting.folder
    if isinstance(flags.get("coeff_layers"), str):
        flags["coeff_layers"] = half(flags["coeff_layers"], flags["model_name_or_path"])
    measured = fit(setting.task, flags)
    if METHODS[job["method"]].flags.get("num_train_epochs") == 0:
        measured["extra_parameters"] = 0  # nothing was trained
    return {**_about(setting), **measured}


def half(which: str, model: str) -> list[int]:
    """Numbers of the layers in one half of a model.

    Args:
        which: `first half` or `last half`; of an odd number of layers the last half is larger.
        model: hub id, local folder, or offline name.

    Returns:
        The numbers.
    """
    from transformers import AutoConfig

    from coeff_tuning.recipes.assets import resolve_model

    layers = list(range(AutoConfig.from_pretrained(resolve_model(model)).num_hidden_layers))
    middle = len(layers) // 2
    return {"first half": layers[:middle], "last half": layers[middle:]}[which]


def fit(task: str, flags: dict[str, Any]) -> rows.Row:
    """One run of `coeff-tuning train`, in this process and without files.

    Args:
        task: one of `recipes.arguments.TASKS`.
        flags: of `train`; an entry that is None is left out.

    Returns:
        Score, loss, numbers of parameters and samples, seconds.
    """
    return kept(train(task, flags)[1])


def train(task: str, flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """As `fit`, with all it leaves behind.

    Args:
        task: one of `recipes.arguments.TASKS`.
        flags: of `train`; an entry that is None is left out.

    Returns:
        The trainer, with model and data, and all metrics.
    """
    from transformers import set_seed

    from coeff_tuning.recipes.configuration import parse_run
    from coeff_tuning.recipes.tasks import prepare
    from coeff_tuning.recipes.train import fit as train_and_measure

    with tempfile.TemporaryDirectory() as folder:  # nothing is saved in it
        argv = [task]
        for key, value in {**flags, **_QUIET, "output_dir": folder}.items():
            if value is not None:
                argv += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        run = parse_run(argv)
        set_seed(run.training.seed)
        trainer, metrics, _ = train_and_measure(run, prepare(run))
    return trainer, metrics


def kept(metrics: dict[str, Any]) -> rows.Row:
    """What a row keeps of the metrics of a run.

    Args:
        metrics: of `train`.

    Returns:
        Score, loss, numbers of parameters and samples, seconds.
    """
    return {key: metrics[key] for key in (scores.score(metrics), *_KEPT)}


def write(folder: Path) -> None:
    """Print and write tables and figure from the rows that a folder holds; nothing is trained.

    Args:
        folder: with `rows.jsonl`; `summary.md` and `fewshot.png` are replaced.
    """
    grid = Grid(STUDY, folder)
    found, tried = grid.stored["final"], grid.stored["search"]
    report.show(found)
    rows.write_text(folder / "summary.md", report.page(found, tried))
    with writing(folder):
        picture.draw(found, folder / "fewshot.png")
    print(f"written to {folder}: rows.jsonl, search.jsonl, summary.md, fewshot.png")
