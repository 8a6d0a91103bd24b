"""Compile the kernels for GPUs that are not there and print the shared memory that each takes, as JSON.

Interpreted kernels may do what Triton's compiler refuses. Here a call goes through the launcher, on CPU tensors and
for a driver that only names a GPU, and every kernel stops short of its launch.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from coeff_tuning.ops._call import Call, Needs
from coeff_tuning.ops.triton import _launch
from tests.ops.attention_cases import Case


@dataclasses.dataclass
class NamedGpu:
    """Driver of a GPU that is not there."""

    capability: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


CASES = [
    (80, torch.bfloat16, Case("vision", 1, 12, 12, 197, 197, 64, 64, is_causal=True)),
    (90, torch.float32, Case("decoder", 1, 2, 1, 1, 256, 24, 16, mask="float B H L S", per_sample=True)),
]


def main() -> None:
    shared: dict[str, dict[str, int]] = {}

    def compile_only(kernel: JITFunction, grid: tuple[int, ...]) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
            shared[case.name][kernel.__name__] = compiled.metadata.shared

        return run

    JITFunction.__getitem__ = compile_only
    for capability, dtype, case in CASES:
        triton.runtime.driver.set_active(NamedGpu(capability))
        shared[case.name] = {}
        x = case.inputs(dtype)
        call = Call(x["query"], x["key"], x["value"], x["coeff"], x["attn_mask"], None, 0.0, case.is_causal, 0.3)
        with torch.no_grad():
            out, statistics = _launch.forward(call)
            _launch.backward(out, statistics, call, Needs(True, True, True, True, False))
    print(json.dumps(shared))


if __name__ == "__main__":
    main()
