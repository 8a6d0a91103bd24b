"""timm and open_clip for tests: both import torchvision, whose wheels on the package registry need a CUDA torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest


class _Anything(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(MetaPathFinder, Loader):
    """Finds a torchvision of names without meaning; the parts of timm and open_clip under test use none of them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def library(name: str) -> ModuleType:
    """Import a library that needs torchvision, with an empty one in its place if it is missing or broken.

    Args:
        name: "timm" or "open_clip". The test is skipped if it is not installed.

    Returns:
        The library. No torchvision is left behind, so transformers does not take it for real.
    """
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install --no-deps {name.replace('open_clip', 'open_clip_torch')}")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        try:
            return importlib.import_module(name)
        finally:
            sys.meta_path.remove(finder)
            for stub in [other for other in sys.modules if other.split(".")[0] == "torchvision"]:
                del sys.modules[stub]
    return importlib.import_module(name)
