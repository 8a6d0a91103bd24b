"""The kernels run twice: as Python on the CPU in every run, and on a GPU with `pytest -m gpu` where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from coeff_tuning.ops.triton import backend


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device for tensors."""
    pytest.importorskip("triton")
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        yield "cuda"
        return
    if torch.cuda.is_available():
        pytest.skip("kernels run on the GPU here: pytest -m gpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "_interpreted", True)
    _teach_bfloat16(monkeypatch)
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    yield "cpu"
    torch.use_deterministic_algorithms(False)


def _teach_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply bfloat16 as numbers, not as their bits, and round to it, not cut off."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def numbers(handle: TensorHandle) -> np.ndarray:
        is_bits = handle.dtype.scalar == tl.bfloat16
        return (handle.data.astype(np.uint32) << 16).view(np.float32) if is_bits else handle.data

    def create_dot(self: object, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: object) -> TensorHandle:
        product = np.matmul(numbers(a), numbers(b), dtype=np.float32)
        return TensorHandle(product + d.data, d.dtype.scalar)

    def cast_impl(self: InterpreterBuilder, source: TensorHandle, target: tl.dtype) -> TensorHandle:
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return cast(self, source, target)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return TensorHandle(rounded.view(torch.uint16).numpy(), target.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
