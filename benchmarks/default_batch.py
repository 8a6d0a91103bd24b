"""What the default batch size of `coeff-tuning train` was chosen on: validation data of four settings.

    python benchmarks/default_batch.py --output_dir docs/results/defaults --data emoji=FOLDER clothing=FOLDER
    python benchmarks/default_batch.py --output_dir docs/results/defaults            # the table, from stored rows

Settings of `study fewshot` with their weights, data, sizes and samples of a class; every other flag is the default, but
for the batch size and the method. Test data are not used. A run that is in the folder is not made again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from statistics import mean

from coeff_tuning.studies import rows, tables
from coeff_tuning.studies.fewshot import settings, study
from coeff_tuning.studies.grid import Grid

SETTINGS, METHODS, SEEDS = ("bbc-news", "clothing", "digits", "emoji"), ("coeff", "coeff+lora"), (100, 101)
BATCHES = (8, 32)
KEPT = ("model_name_or_path", "dataset", "image_size", "max_seq_length", "train_samples_per_class")


def run(grid: Grid, folders: dict[str, str]) -> None:
    for seed, name in product(SEEDS, SETTINGS):
        setting = settings.make(name, folders)
        flags = {key: value for key, value in setting.flags.items() if key in KEPT}
        if setting.folder is not None:
            flags["dataset"] = setting.folder
        for method, batch in product(METHODS, BATCHES):
            job = {"setting": name, "method": method, "seed": seed}
            tried = {"per_device_train_batch_size": batch}
            if grid.find("search", job, tried) is None:
                further = {"method": method, "seed": seed, "eval_split": "validation", "max_eval_samples": 200}
                measured = study.fit(setting.task, {**flags, **tried, **further})
                grid.store("search", job, {"settings": tried, "weights": setting.weights, **measured})
                print(
                    f"{name}, {method}, seed {seed}, batches of {batch}: {100 * measured['accuracy']:.1f} %", flush=True
                )


def page(found: list[rows.Row]) -> str:
    """One line for each setting and method: accuracy by batch size, and seconds."""
    lines = []
    for name, method in product(SETTINGS, METHODS):
        own = [
            [r for r in found if (r["setting"], r["method"], *r["settings"].values()) == (name, method, b)]
            for b in BATCHES
        ]
        if all(own):
            scores = [tables.spread([100 * row["accuracy"] for row in part]) for part in own]
            seconds = [f"{mean(row['train_seconds'] for row in part):.0f} s" for part in own]
            lines.append([name, method, *(f"{score}, {time}" for score, time in zip(scores, seconds, strict=True))])
    header = ["setting", "method", *(f"batches of {batch}" for batch in BATCHES)]
    return f"{tables.markdown(header, lines)}\n\n{tables.where(found)}\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="for search.jsonl and summary.md")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="emoji and clothing; runs them")
    arguments = parser.parse_args(argv)
    grid = Grid("defaults", arguments.output_dir)
    if arguments.data:
        run(grid, settings.parse_folders(arguments.data))
    if not grid.stored["search"]:
        parser.error(f"there are no rows in {arguments.output_dir} yet; give --data to run")
    text = page(grid.stored["search"])
    rows.write_text(arguments.output_dir / "summary.md", text)
    print(text)


if __name__ == "__main__":
    main()
