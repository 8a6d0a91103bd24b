"""The package as a whole: public names, docstrings, what an import needs, files and their size."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import coeff_tuning

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "coeff_tuning").rglob("*.py"))


def test_public_names() -> None:
    assert coeff_tuning.__all__ == sorted(coeff_tuning.__all__)
    for name in coeff_tuning.__all__:
        assert getattr(coeff_tuning, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "CoeffConfig",
        "CoeffLayer",
        "CoeffModel",
        "add_coeff",
        "coeff_attention",
        "load_adapters",
        "load_coeff",
        "register_attention",
    ],
)
def test_public_docstrings_say_arguments_and_errors(name: str) -> None:
    doc = inspect.getdoc(getattr(coeff_tuning, name)) or ""
    assert "Args:" in doc
    assert "Raises:" in doc or name == "CoeffLayer"


def test_every_exception_is_a_builtin_too() -> None:
    errors = [e for e in vars(coeff_tuning.errors).values() if isinstance(e, type)]
    base = coeff_tuning.errors.CoeffTuningError
    for error in errors:
        assert issubclass(error, base)
        assert error is base or len(error.__bases__) == 2
        assert error.__name__ in (coeff_tuning.errors.__doc__ or "")


def test_import_and_a_call_load_no_optional_package() -> None:
    optional = {
        "datasets",
        "matplotlib",
        "scipy",
        "sklearn",
        "PIL",
        "rich",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "gguf",
        "timm",
        "diffusers",
        "open_clip",
        "triton",
    }
    code = (
        "import sys, peft, transformers.modeling_utils\n"
        "before = set(sys.modules)\n"
        "import torch, coeff_tuning, coeff_tuning.cli\n"
        "coeff_tuning.coeff_attention(*torch.randn(3, 1, 4, 5, 8), torch.ones(4, 4))\n"
        "print(' '.join({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "coeff_tuning" in loaded
    assert not loaded & optional


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path) -> None:
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_modules_and_functions_stay_small(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 275
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{node.name} has {lines} lines"
