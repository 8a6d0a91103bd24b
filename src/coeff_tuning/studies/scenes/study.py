"""Projection first, then every method from there; search on validation scenes, final runs on test scenes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from coeff_tuning.recipes.assets import MODELS
from coeff_tuning.recipes.run_folder import METRICS_FILE, writing
from coeff_tuning.recipes.vision_language import command
from coeff_tuning.recipes.vision_language.readers import TASKS
from coeff_tuning.studies import rows
from coeff_tuning.studies.grid import Grid
from coeff_tuning.studies.scenes import data, picture, report

STUDY = "scenes"
SEARCH_SEED = 100  # none of the usual seeds of final runs
LANGUAGE = "smollm2-135m"
SIZES = {"train": 800, "val": 50, "test": 100}  # items of each task
BASE_STEPS, STEPS = 200, 100
BASE_RATE = 3e-3
FLAGS = {
    "model_name_or_path": LANGUAGE,
    "text_length": 16,
    "num_beams": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "coeff_dropout": 0.1,
}
_QUIET = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
# The baseline tries two rates of the projection; the others have the defaults of this library and of LoRA's users.
METHODS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"learning_rate": rate} for rate in (1e-3, 3e-3)],
    "coeff": [{"coeff_learning_rate": 1e-2}],
    "lora": [{"lora_learning_rate": 1e-3}],
    "coeff+lora": [{"coeff_learning_rate": 1e-2, "lora_learning_rate": 1e-3}],
}
_KEPT = (*TASKS, "mean", "heldout_split", "heldout_samples", "train_samples", "extra_parameters", "train_seconds")


def run_all(folder: Path, methods: list[str], seeds: list[int], data_dir: Path) -> list[rows.Row]:
    """Do what has not been done yet: one seed after the other, in each one method after the other.

    Args:
        folder: for `rows.jsonl` and `search.jsonl`.
        methods: some of `METHODS`.
        seeds: seeds; each draws scenes, projection and order.
        data_dir: for scenes and projections, which are made where they are missing.

    Returns:
        All rows of final runs in the folder.
    """
    grid = Grid(STUDY, folder)
    grid.check(lambda _: _about())
    jobs = [{"method": method, "seed": seed} for seed in seeds for method in methods]
    for number, job in enumerate(jobs, start=1):
        is_done = grid.find("final", job) is not None
        print(f"[{number}/{len(jobs)}] {job['method']}, seed {job['seed']}{': done' if is_done else ''}", flush=True)
        if not is_done:
            chosen = _choose(grid, job, data_dir)
            grid.store("final", job, {"settings": chosen, **_measure(job, chosen, data_dir, "test")})
    return grid.stored["final"]


def _choose(grid: Grid, job: rows.Row, where: Path) -> dict[str, Any]:
    search = {**job, "seed": SEARCH_SEED}
    candidates = METHODS[job["method"]]
    if len(candidates) == 1:
        return candidates[0]
    best = grid.search(search, candidates, lambda tried: _measure(search, tried, where, "val"), report.score)
    return dict(best["settings"])


def _measure(job: rows.Row, settings: dict[str, Any], where: Path, split: str) -> rows.Row:
    scenes, base = prepare(where, job["seed"])
    with tempfile.TemporaryDirectory() as folder:  # nothing of it is kept
        flags = {"data": scenes, "projection": base, "output_dir": Path(folder) / "run", "eval_split": split}
        metrics = fit({**FLAGS, **flags, "method": job["method"], "max_steps": STEPS, "seed": job["seed"], **settings})
    return {**{key: metrics[key] for key in _KEPT}, **_about()}


def prepare(where: Path, seed: int) -> tuple[Path, Path]:
    """Scenes of a seed, and a projection trained on them with everything else frozen.

    Args:
        where: folder for both; what it holds already is taken.
        seed: draws both.

    Returns:
        Folder of the scenes, and run folder of the projection.
    """
    scenes, base = where / f"scenes-{seed}", where / f"projection-{seed}"
    data.write(scenes, SIZES, seed)
    if not (base / METRICS_FILE).is_file():
        flags = {"data": scenes, "output_dir": base, "method": "linear", "max_steps": BASE_STEPS, "seed": seed}
        fit({**FLAGS, **flags, "learning_rate": BASE_RATE, "max_eval_samples": 1, "overwrite_output_dir": True})
    return scenes, base


def fit(flags: dict[str, Any]) -> dict[str, Any]:
    """One run of `coeff-tuning vl` in this process.

    Args:
        flags: of `vl`.

    Returns:
        Its metrics.
    """
    argv = [str(part) for key, value in {**flags, **_QUIET}.items() for part in (f"--{key}", value)]
    return command.train(command.parse(argv))


def _about() -> rows.Row:
    """What all rows share."""
    assets = {name: MODELS[name] for name in (LANGUAGE, data.VISION)}
    weights = {name: {"package": asset.package, "version": asset.version} for name, asset in assets.items()}
    return {"flags": FLAGS, "sizes": SIZES, "steps": [BASE_STEPS, STEPS], "first_rate": BASE_RATE, "weights": weights}


def write(folder: Path) -> None:
    """Print and write table and figure from the rows that a folder holds; nothing is trained.

    Args:
        folder: with `rows.jsonl`; `summary.md`, `scenes.png` and `examples.png` are replaced.
    """
    grid = Grid(STUDY, folder)
    found = grid.stored["final"]
    report.show(found)
    rows.write_text(folder / "summary.md", report.page(found, grid.stored["search"]))
    with writing(folder):
        picture.draw(found, folder / "scenes.png")
        picture.draw_examples(folder / "examples.png")
    print(f"written to {folder}: rows.jsonl, search.jsonl, summary.md, scenes.png, examples.png")
