"""Where data comes from: local files and folders, the hub, or an offline name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coeff_tuning.errors import DataError
from coeff_tuning.recipes import assets, checks
from coeff_tuning.recipes.arguments import DataArguments
from coeff_tuning.recipes.extras import require

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def load_source(arguments: DataArguments) -> Any:
    """Load a data set from wherever it is.

    Args:
        arguments: files, or the name of a data set.

    Returns:
        A `DatasetDict`.

    Raises:
        DataError: it cannot be found or read.
    """
    datasets = require("datasets")
    files = {
        "train": arguments.train_file,
        "validation": arguments.validation_file,
        "test": arguments.test_file,
    }
    name = arguments.dataset
    if any(files.values()):
        return _load_files({k: v for k, v in files.items() if v})
    assert name is not None
    if name == "digits":
        return _digits()
    if name in assets.DATASETS:
        return _load_files({"train": str(assets.fetch(assets.DATASETS[name]) / "data.jsonl")})
    path = Path(name)
    if path.is_file():
        return _load_files({"train": name})
    if path.is_dir():
        checks.check_class_folders(path)
    elif name.startswith((".", "/", "~")):
        raise DataError(f"data folder or file {name} does not exist")
    try:
        loaded = datasets.load_dataset(name, arguments.dataset_config)
    except Exception as error:  # `datasets` raises a dozen unrelated types for data that cannot be read
        raise DataError(f"data set {name!r} cannot be loaded: {_first_line(error)}") from error
    return loaded if isinstance(loaded, dict) else datasets.DatasetDict(train=loaded)


def _load_files(files: dict[str, str]) -> Any:
    datasets = require("datasets")
    suffixes = {Path(path).suffix for path in files.values()}
    for path in files.values():
        if not Path(path).is_file():
            raise DataError(f"data file {path} does not exist")
    if len(suffixes) != 1 or not suffixes <= _BUILDERS.keys():
        raise DataError(f"data files must share one of the suffixes {', '.join(_BUILDERS)}; got {sorted(suffixes)}")
    (suffix,) = suffixes
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    for path in files.values():
        if Path(path).stat().st_size == 0:
            raise DataError(f"data file {path} is empty")
    try:
        return datasets.load_dataset(_BUILDERS[suffix], data_files=files, **options)
    except Exception as error:  # as above
        raise DataError(f"data files {', '.join(files.values())} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]


def _digits() -> Any:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels."""
    datasets = require("datasets")
    digits = require("sklearn.datasets").load_digits()
    pixels = (digits.images * (255 / 16)).astype(np.uint8)
    image_module = require("PIL.Image")
    names = [str(n) for n in digits.target_names]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = {"image": [image_module.fromarray(p) for p in pixels], "label": digits.target.tolist()}
    return datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features))
