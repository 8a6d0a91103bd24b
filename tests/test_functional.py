"""What `coeff_attention` accepts, and what it says to the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention

B, H, L, S, E, EV = 2, 12, 5, 7, 11, 13


def inputs(**changes: Any) -> dict[str, Any]:
    return {
        "query": torch.randn(B, H, L, E),
        "key": torch.randn(B, H, S, E),
        "value": torch.randn(B, H, S, EV),
        "coeff": torch.randn(H, H),
    } | changes


ERRORS = [
    (
        {"coeff": torch.randn(8, 8)},
        r"coeff must have shape \(H, H\) = \(12, 12\) to match the 12 heads .* got \(8, 8\)",
    ),
    ({"coeff": torch.randn(12, 11)}, r"\(12, 12\) to match the 12 heads of query; got \(12, 11\)"),
    ({"coeff": torch.randn(12)}, r"\(12, 12\) .* got \(12,\)"),
    ({"coeff": torch.randn(3, 12, 12)}, r"broadcast to \(2,\), those of query; got \(3, 12, 12\)"),
    ({"coeff": torch.randn(2, 1, 12, 12)}, r"broadcast to \(2,\), those of query; got \(2, 1, 12, 12\)"),
    ({"coeff": torch.ones(12, 12, dtype=torch.int64)}, r"coeff must have one of the dtypes .* got torch\.int64"),
    ({"query": torch.randn(5, 11)}, r"query must have at least 3 dimensions .* got shape \(5, 11\)"),
    ({"key": torch.randn(2, 12, 7, 10)}, r"head size of query, 11; got 10 in key of shape \(2, 12, 7, 10\)"),
    ({"value": torch.randn(2, 12, 6, 13)}, r"as many positions as key, 7; got 6 in value of shape \(2, 12, 6, 13\)"),
    (
        {"key": torch.randn(2, 4, 7, 11), "value": torch.randn(2, 4, 7, 13)},
        r"12 heads of query; got 4 and 4\. Pass enable_gqa=True",
    ),
    ({"key": torch.randn(2, 5, 7, 11), "enable_gqa": True}, r"enable_gqa=True; got 12 for 5 and 12"),
    ({"key": torch.randn(3, 12, 7, 11)}, r"must broadcast .* got \(2,\), \(3,\) and \(2,\)"),
    (
        {"key": torch.randn(2, 12, 7, 11).half()},
        r"same dtype, .* got torch\.float32, torch\.float16 and torch\.float32",
    ),
    ({"query": torch.ones(2, 12, 5, 11).long()}, r"one of float64, float32, bfloat16, float16; got torch\.int64"),
    ({"key": torch.empty(2, 12, 7, 11, device="meta")}, r"key must be on the device of query, cpu; got meta"),
    ({"coeff": torch.empty(12, 12, device="meta")}, r"coeff must be on the device of query, cpu; got meta"),
    (
        {"attn_mask": torch.ones(5, 6)},
        r"attn_mask must broadcast to \(\.\.\., H, L, S\) = \(2, 12, 5, 7\); got \(5, 6\)",
    ),
    ({"attn_mask": torch.ones(1, 2, 12, 5, 7)}, r"= \(2, 12, 5, 7\); got \(1, 2, 12, 5, 7\)"),
    ({"attn_mask": torch.ones(3, 1, 1, 7)}, r"= \(2, 12, 5, 7\); got \(3, 1, 1, 7\)"),
    ({"attn_mask": torch.ones(5, 7).long()}, r"attn_mask must be bool .* got torch\.int64"),
    ({"attn_mask": torch.ones(5, 7), "is_causal": True}, r"None when is_causal=True; got one of shape \(5, 7\)"),
    ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\); got 1\.0"),
    ({"dropout_p": -0.1}, r"dropout_p must be in \[0, 1\); got -0\.1"),
    ({"dropout_p": float("nan")}, r"dropout_p must be in \[0, 1\); got nan"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_value_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coeff_attention(**inputs(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": [1.0]}, r"query must be a torch\.Tensor; got list"),
        ({"value": None}, r"value must be a torch\.Tensor; got NoneType"),
        ({"coeff": 1.0}, r"coeff must be a torch\.Tensor or None; got float"),
        ({"attn_mask": "causal"}, r"attn_mask must be a torch\.Tensor or None; got str"),
    ],
)
def test_type_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        coeff_attention(**inputs(**changes))


def test_signature_is_that_of_sdpa_plus_coeff() -> None:
    x = inputs(coeff=torch.eye(H))
    mask = torch.randn(L, S)
    out = coeff_attention(x["query"], x["key"], x["value"], x["coeff"], mask, 0.0, False, 0.3, False)
    expected = scaled_dot_product_attention(x["query"], x["key"], x["value"], mask, 0.0, False, scale=0.3)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
class TestShapes:
    def test_without_a_batch(self, backend: str) -> None:
        x = inputs()
        whole = coeff_attention(**x, backend=backend)
        one = {name: x[name][1] for name in ("query", "key", "value")}
        out = coeff_attention(**x | one, backend=backend)
        assert out.shape == (H, L, EV)
        torch.testing.assert_close(out, whole[1])

    @pytest.mark.parametrize("matrix", [(H, H), (3, 1, H, H), (2, H, H), (3, 2, H, H), (1, 1, H, H)], ids=str)
    @pytest.mark.parametrize("mask", [(L, S), (3, 1, 1, L, S), (2, H, 1, S), (3, 2, H, L, S)], ids=str)
    def test_more_leading_dimensions(self, backend: str, matrix: tuple[int, ...], mask: tuple[int, ...]) -> None:
        x = inputs(query=torch.randn(3, 2, H, L, E), coeff=torch.randn(matrix), attn_mask=torch.randn(mask))
        out = coeff_attention(**x, backend=backend)
        assert out.shape == (3, 2, H, L, EV)
        coeffs, masks = x["coeff"].expand(3, 2, H, H), x["attn_mask"].expand(3, 2, H, L, S)
        for i in range(3):
            for j in range(2):
                one = coeff_attention(
                    x["query"][i, j], x["key"][j], x["value"][j], coeffs[i, j], masks[i, j], backend="reference"
                )
                torch.testing.assert_close(out[i, j], one)

    def test_heads_broadcast_as_in_sdpa(self, backend: str) -> None:
        identity = torch.eye(H)
        shapes = [(H, 1, 1), (1, H, H), (H, 1, H), (1, 1, H)]
        for query_heads, key_heads, value_heads in shapes:
            query, key = torch.randn(B, query_heads, L, E), torch.randn(B, key_heads, S, E)
            value = torch.randn(B, value_heads, S, EV)
            out = coeff_attention(query, key, value, identity, backend=backend)
            torch.testing.assert_close(out, scaled_dot_product_attention(query, key, value))

    def test_different_numbers_of_key_and_value_heads(self, backend: str) -> None:
        x = inputs(key=torch.randn(B, 4, S, E), value=torch.randn(B, 2, S, EV), enable_gqa=True)
        expected = x | {
            "key": x["key"].repeat_interleave(3, 1),
            "value": x["value"].repeat_interleave(6, 1),
        }
        torch.testing.assert_close(
            coeff_attention(**x, backend=backend), coeff_attention(**expected, backend="reference")
        )

    def test_gradients_reach_broadcast_inputs(self, backend: str) -> None:
        x = inputs(query=torch.randn(3, 1, H, L, E), key=torch.randn(1, 2, H, S, E), coeff=torch.randn(3, 1, H, H))
        tensors = [tensor.requires_grad_() for tensor in x.values()]
        out = coeff_attention(**x, backend=backend)
        grad = torch.randn_like(out)
        gradients = torch.autograd.grad(out, tensors, grad)
        expected = torch.autograd.grad(coeff_attention(**x, backend="reference"), tensors, grad)
        torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_a_float64_mask_beside_a_float32_query_is_cast(backend: str) -> None:
    query, key, value = torch.randn(3, 1, 2, 3, 4).unbind(0)
    mask = torch.zeros(3, 3, dtype=torch.float64)
    mask[0] = torch.finfo(torch.float64).min  # -inf in float32: nothing to attend to
    out = coeff_attention(query, key, value, torch.randn(2, 2), mask, backend=backend)
    assert torch.equal(out[:, :, 0], torch.zeros(1, 2, 4))
    assert out.isfinite().all()


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_forward_mode_derivatives_are_right_and_never_dropped(grad: bool) -> None:
    arguments = inputs()
    tangents = {name: torch.randn_like(x) for name, x in arguments.items()}
    exact = torch.func.jvp(
        lambda given: coeff_attention(**given, backend="reference"), (_double(arguments),), (_double(tangents),)
    )[1]
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(x, tangents[name]) for name, x in arguments.items()}
        tangent = forward_ad.unpack_dual(coeff_attention(**duals)).tangent
        with pytest.raises(UnsupportedError, match="has no forward-mode derivatives"):
            coeff_attention(**duals, backend="chunked")
    torch.testing.assert_close(tangent.double(), exact, atol=1e-5, rtol=1e-5)


def _double(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() for name, x in tensors.items()}
