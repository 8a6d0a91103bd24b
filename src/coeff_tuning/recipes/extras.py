"""Optional dependencies: imported where they are needed, named with their pip command where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from coeff_tuning.errors import MissingDependencyError

_EXTRA_OF = {
    "accelerate": "train",
    "datasets": "train",
    "matplotlib": "train",
    "PIL": "train",
    "yaml": "train",
    "rich": "train",
    "scipy": "train",
    "sklearn": "train",
    "threadpoolctl": "train",
    "ray": "sweep",
    "timm": "timm",
    "h5py": "vl",
    "pycocoevalcap": "vl",
    "onnx": "offline",
    "gguf": "offline",
    "sentencepiece": "offline",
}


def require(module: str) -> Any:
    """Import an optional module.

    Args:
        module: dotted name, as in `import`.

    Returns:
        The module.

    Raises:
        MissingDependencyError: it is not installed; the message holds the pip command.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"this command needs {package}, which is not installed; "
            f"run: pip install 'coeff-tuning[{_EXTRA_OF[package]}]'"
        ) from None
