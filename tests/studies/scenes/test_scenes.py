from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coeff_tuning import cli
from coeff_tuning.recipes.vision_language import readers
from coeff_tuning.studies.scenes import data, report, scenes, study

SIZES = {"train": 12, "val": 5, "test": 7}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data as the study writes them, with features that are the pixels of the images."""

    def pixels(folder: Path, images: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            np.savez(folder / f"{name}.npz", features=np.asarray(image, "float32").reshape(56, -1))

    monkeypatch.setattr(data, "write_features", pixels)
    data.write(tmp_path / "data", SIZES, 3)
    return tmp_path / "data"


def test_answers_are_what_the_scene_shows() -> None:
    draw = random.Random(1)
    kinds, truths = set(), []
    for _ in range(600):
        scene, other = scenes.make(draw), scenes.make(draw)
        things = list(scene.objects.values())
        assert len(set(things)) == len(things) <= 4
        question, answer = scenes.ask_vqa(scene, draw)
        kinds.add(question.split()[0])
        if question.startswith("how many"):
            assert answer == ("one", "two", "three", "four")[len(things) - 1]
        else:
            assert [c for c, shape in things if shape == question.split()[-1].rstrip("?")] == [answer]
        question, answer = scenes.ask_gqa(scene, draw)
        kinds.add(question.split()[0])
        if question.startswith("which"):
            assert scene.objects[question[len("which shape is ") : -1]][1] == answer
        else:
            colour, shape = question[len("is there a ") : -1].split()
            assert ((colour, shape) in things) == (answer == "yes")
            truths.append(answer == "yes")
        statement, holds = scenes.ask_nlvr(scene, other, draw)
        word = statement.split()[-1]
        assert holds == all(any(word in thing for thing in s.objects.values()) for s in (scene, other))
    assert kinds == {"how", "what", "which", "is"}
    assert 0.4 < np.mean(truths) < 0.6


def test_image_shows_the_scene() -> None:
    scene = scenes.Scene({"top right": ("red", "square"), "bottom left": ("blue", "circle")})
    image = np.asarray(scene.draw())
    assert tuple(image[14, 42]) == scenes.COLOURS["red"]
    assert tuple(image[42, 14]) == scenes.COLOURS["blue"]
    assert tuple(image[14, 14]) == tuple(image[42, 42]) == (235, 235, 235)
    assert tuple(image[33, 5]) == (235, 235, 235)  # a corner of the place, outside the circle
    assert scenes.describe(scene) == ["a red square and a blue circle", "a blue circle and a red square"]
    assert scenes.describe(scenes.Scene({"top left": ("red", "square")})) == ["a red square"]


def test_formats_are_those_that_vl_reads(written: Path) -> None:
    for task in readers.TASKS:
        splits = {split: readers.read(written, task, split) for split in SIZES}
        assert {split: len(items) for split, items in splits.items()} == SIZES
        assert readers.check_features([item for items in splits.values() for item in items]) == 3 * 56
    assert (len(readers.read(written, "nlvr", "val")[0].features), len(readers.read(written, "vqa", "val"))) == (2, 5)


def test_no_scene_is_in_two_splits(written: Path) -> None:
    for task in readers.TASKS:
        shown = {
            split: {
                b"".join(readers.load_features(path, "").tobytes() for path in item.features)
                for item in readers.read(written, task, split)
            }
            for split in SIZES
        }
        assert not shown["train"] & shown["test"]
        assert not shown["val"] & (shown["train"] | shown["test"])


def test_seed_draws_everything() -> None:
    first, again, other = (data.items("gqa", SIZES, random.Random(seed))[1] for seed in (0, 0, 1))
    assert first == again != other


def test_runner_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One projection for each seed, two candidates for the baseline alone, and each final run once."""
    calls: list[tuple[Any, ...]] = []

    def fit(flags: dict[str, Any]) -> dict[str, Any]:
        split, rate = flags.get("eval_split"), flags.get("coeff_learning_rate", flags["learning_rate"])
        calls.append((flags["method"], flags["seed"], flags["max_steps"], split, rate))
        if split is None:
            Path(flags["output_dir"]).mkdir(parents=True)
            (Path(flags["output_dir"]) / "metrics.json").write_text("{}")
        kept = dict.fromkeys(study._KEPT, 0)
        return {**kept, "vqa": 100 * rate, "gqa": 1.0, "nlvr": 1.0, "caption": 10.0, "mean": 0.0}

    monkeypatch.setattr(study, "fit", fit)
    monkeypatch.setattr(data, "write", lambda *_: None)
    for _ in range(2):
        study.run_all(tmp_path, ["linear", "coeff"], [0, 1], tmp_path / "data")
        assert len(calls) == 3 + 2 + 2 * 2
    searched = [call for call in calls if call[3] == "val"]
    assert {call[1] for call in searched} == {study.SEARCH_SEED}
    best = (("linear", 3e-3), ("coeff", 1e-2))
    expected = [(method, seed, study.STEPS, "test", rate) for seed in (0, 1) for method, rate in best]
    assert [call for call in calls if call[3] == "test"] == expected
    study.write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"scenes.png", "examples.png"}
    page = (tmp_path / "summary.md").read_text()
    assert "| coeff - linear | +0.7 ± 0.0 (2/2) |" in page
    assert "| linear | 0.001: 0.8; **0.003: 0.8** |" in page


def test_differences_are_of_the_same_seed() -> None:
    rows = [
        {"method": method, "seed": seed, "extra_parameters": 3, "vqa": v, "gqa": v, "nlvr": v, "caption": 10 * v}
        for method, found in (("linear", (10, 20)), ("coeff", (14, 26)), ("lora", (15,)))
        for seed, v in enumerate(found)
    ]
    assert report.gains(rows, "coeff", "linear", "mean") == [4, 6]
    assert report.gains(rows, "lora", "linear", "vqa") == [5]
    assert report.summary(rows)[1][1] == ["coeff", "3", *["20.0 ± 8.5"] * 3, "200.0 ± 84.9", "20.0 ± 8.5"]


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--methods", "coeff,magic"], "--methods must be 'all' or some of linear, coeff, lora, coeff+lora; got magic"),
        (["--report"], "there are no rows yet"),
    ):
        assert cli.main(["study", "scenes", "--output_dir", str(tmp_path / "out"), *flags]) == 2
        assert message in capsys.readouterr().err


def test_data_are_written_once(written: Path) -> None:
    before = (written / "vqa" / "train.json").stat().st_mtime_ns
    data.write(written, SIZES, 3)
    assert (written / "vqa" / "train.json").stat().st_mtime_ns == before
    assert json.loads((written / "complete.json").read_text()) == {"sizes": SIZES, "seed": 3}
