"""Fixtures shared by all tests: fixed seeds, and no network for the model hub."""

from __future__ import annotations

import contextlib
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tensors are tiny here: a second thread only waits, and waits long on a busy machine. Children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Triton decides when it is imported whether kernels run on a GPU or, slowly, as Python on the CPU: it has to be
# imported before anything else does. Its kernels look again when they are defined, see tests/ops/triton/conftest.py.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton.language  # noqa: F401
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
