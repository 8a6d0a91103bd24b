"""One value head for all: when torch's own kernel and a mix of outputs are taken, and by which rule."""

from __future__ import annotations

import pytest
import torch

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops import select_backend
from coeff_tuning.ops.canonical import make_request
from coeff_tuning.ops.native import library
from tests.ops.attention_cases import NAMED


def chosen(name: str, dtype: torch.dtype, dropout_p: float = 0.0) -> str:
    return select_backend(make_request(**NAMED[name].inputs(dtype), dropout_p=dropout_p)[0]).name


def test_rule() -> None:
    """On a CPU the kernel that mixes maps is as fast, so this serves what it refuses; never several value heads."""
    assert chosen("GQA H:1", torch.float32) == ("mqa" if library.why_missing() else "native")
    assert chosen("GQA H:1", torch.float64) == "mqa"
    assert chosen("GQA H:1", torch.float32, dropout_p=0.1) == "mqa"
    assert chosen("GQA 2:1", torch.float64) == "chunked"
    assert chosen("GQA H:1", torch.bfloat16, dropout_p=0.1) == "chunked"


@pytest.mark.parametrize(
    ("name", "dtype", "reason"),
    [
        ("GQA 2:1", torch.float64, "needs one key/value head, got 3"),
        ("GQA H:1", torch.float16, "must not be rounded before, got torch.float16"),
    ],
)
def test_refusal_says_why(name: str, dtype: torch.dtype, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        coeff_attention(**NAMED[name].inputs(dtype), backend="mqa")


def test_dropout_acts_on_maps() -> None:
    """With one key its value comes out `coeff.sum(1)` times, or is dropped head by head before mixing."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 501, 4), torch.randn(1, 1, 1, 4)
    coeff = torch.tensor([[1.0, 10.0], [0.0, 1.0]])
    out = coeff_attention(query, key, torch.ones(1, 1, 1, 1), coeff, dropout_p=0.5, backend="mqa")
    assert set(out[0, 0, :, 0].tolist()) == {0.0, 2.0, 20.0, 22.0}
    assert set(out[0, 1, :, 0].tolist()) == {0.0, 2.0}
