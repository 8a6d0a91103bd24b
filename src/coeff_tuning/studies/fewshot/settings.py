"""Settings of the few-shot study: a model, data, and the flags of `coeff-tuning train` that all methods share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.assets import DATASETS, MODELS
from coeff_tuning.recipes.configuration import read_config
from coeff_tuning.studies.fewshot.methods import SEARCHES

_CAUSAL_LM_SEEDS = 3
# Small enough for one core of a processor: a run takes about half a minute. Every head starts as the converged probe.
_IMAGES = {
    "task": "image-classification",
    "model_name_or_path": "dinov2-small",
    "image_size": 56,
    "train_samples_per_class": 8,
    "max_eval_samples": 400,
    "num_train_epochs": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "head_start": "probe",
}
_DIGITS = {
    **_IMAGES,
    "dataset": "digits",
    "image_size": 42,
    "max_eval_samples": 500,
    "per_device_train_batch_size": 8,
}
_SHORT: dict[str, dict[str, Any]] = {
    "digits": {**_DIGITS, "train_samples_per_class": 16},
    "emoji": {**_IMAGES, "dataset": "emoji"},
    "clothing": {**_IMAGES, "dataset": "clothing"},
    "mnist": {**_IMAGES, "dataset": "mnist"},
    "bbc-news": {
        "task": "text-classification",
        "model_name_or_path": "minilm",
        "dataset": "bbc-news",
        "max_seq_length": 48,
        "train_samples_per_class": 8,
        "max_eval_samples": 300,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "head_start": "probe",
    },
}
# Data that no default of `train` was chosen on; flags that are not named here are at these.
_UNSEEN: dict[str, dict[str, Any]] = {
    "fashion": {
        "task": "image-classification",
        "model_name_or_path": "dinov2-small",
        "dataset": "fashion",
        "image_size": 56,
        "train_samples_per_class": 8,
        "max_eval_samples": 400,
    },
    "sms-spam": {
        "task": "text-classification",
        "model_name_or_path": "minilm",
        "dataset": "spam",
        "max_seq_length": 48,
        "train_samples_per_class": 32,
        "max_eval_samples": 500,
    },
}
# The short ones with more than three times as many epochs, and twice as many candidates in the search.
_LONG = {"num_train_epochs": 20, "per_device_train_batch_size": 8, "search": "long"}
KNOWN: dict[str, dict[str, Any]] = {
    **_SHORT,
    **{f"{name}-long": {**flags, **_LONG} for name, flags in _SHORT.items()},
    **_UNSEEN,
    "language-model": {
        "task": "causal-lm",
        "model_name_or_path": "smollm2-135m",
        "dataset": "bbc-news",
        "max_seq_length": 64,
        "max_train_samples": 3,
        "max_eval_samples": 4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
    },
    "digits-8": {**_DIGITS, "train_samples_per_class": 8},
    "digits-4": {**_DIGITS, "train_samples_per_class": 4},
}
DEFAULT = ("digits", "bbc-news", "language-model")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: names its rows.
        task: one of `recipes.arguments.TASKS`.
        flags: of `coeff-tuning train`, as rows hold them: data that the user gave have their name only.
        folder: where these data are; None for data with a name of their own.
        search: `short` or `long`: how many candidates a method tries.
        weights: name of the model, and package and version of its weights where they are an asset.
        data: the same of the data; number and checksum of the files of a folder.
    """

    name: str
    task: str
    flags: dict[str, Any]
    folder: str | None
    weights: dict[str, Any]
    data: dict[str, Any]
    search: str = "short"

    def seeds(self, seeds: list[int]) -> list[int]:
        """Seeds that are run: of a language model, whose runs are longest, the first few.

        Args:
            seeds: that were asked for.

        Returns:
            Some of them.
        """
        return seeds[:_CAUSAL_LM_SEEDS] if self.task == "causal-lm" else seeds


def make(name: str, folders: dict[str, str]) -> Setting:
    """A setting by name.

    Args:
        name: one of `KNOWN`, or a config file of `train`, whose stem becomes the name.
        folders: `dataset` of a setting to folder.

    Returns:
        The setting.

    Raises:
        RunError: it is unknown, lacks its task, or needs a folder that was not given or is not there.
    """
    is_file = Path(name).suffix in (".yaml", ".yml")
    if not is_file and name not in KNOWN:
        raise RunError(f"--settings must be config files (.yaml) or some of {', '.join(KNOWN)}; got {name!r}")
    flags = read_config(name) if is_file else dict(KNOWN[name])
    task, search = flags.pop("task", None), flags.pop("search", "short")
    if task is None:
        raise RunError(f"config file {name} must name its task, for example 'task: text-classification'")
    if search not in SEARCHES:
        raise RunError(f"config file {name}: search must be one of {', '.join(SEARCHES)}; got {search!r}")
    dataset = flags.get("dataset")
    folder = folders.get(str(dataset))
    if not is_file and folder is None and dataset not in (*DATASETS, "digits"):
        raise RunError(f"setting {name!r} needs a folder with its data: --data {dataset}=FOLDER")
    stem = Path(name).stem if is_file else name
    weights = _describe(flags.get("model_name_or_path"), MODELS)
    data = {**_describe(str(dataset), DATASETS), **_files(folder)}
    return Setting(stem, task, flags, folder, weights, data, search)


def parse_folders(entries: list[str]) -> dict[str, str]:
    """Read `NAME=FOLDER`.

    Args:
        entries: of the command line.

    Returns:
        Folder by name.

    Raises:
        RunError: an entry has another form, or its folder does not exist.
    """
    found = {}
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise RunError(f"--data must be NAME=FOLDER, for example emoji=data/emoji; got {entry!r}")
        if not Path(folder).is_dir():
            raise RunError(f"--data {entry}: there is no folder {folder}")
        found[name] = folder
    return found


def _describe(name: Any, known: dict[str, Any]) -> dict[str, Any]:
    asset = known.get(name)
    return {"name": name} if asset is None else {"name": name, "package": asset.package, "version": asset.version}


def _files(folder: str | None) -> dict[str, Any]:
    """Number of files in a folder, and a checksum of their names and sizes."""
    if folder is None:
        return {}
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files]
    return {"files": len(files), "sha256_of_names_and_sizes": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
