"""torch.nn.MultiheadAttention itself: every option against torch's own eager math, and what is refused."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from coeff_tuning import CoeffConfig
from coeff_tuning.errors import UnsupportedModelError
from tests import tiny
from tests.binders.literal import literal_mixing
from tests.binders.torch_mha_cases import CASES, TOLERANCE, B, E, H, Host, L, inputs
from tests.tiny import adapt

# torch warns that its own encoder makes a prototype nested tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("weights", ["none", "mean", "heads"])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchs_eager_math(case: str, weights: str, training: bool) -> None:
    options, kind, masks = CASES[case]
    model = adapt(Host(**options)).train(training)
    args = inputs(kind, options.get("batch_first", False), options.get("kdim", E), options.get("vdim", E))
    args = [x.requires_grad_() for x in args]
    wish = {"need_weights": weights != "none", "average_attn_weights": weights == "mean"}
    out, maps = model(*args, **masks, **wish)
    with literal_mixing(model) as mixed, model.disable_adapter():
        expected, expected_maps = model(*args, **masks, need_weights=True, average_attn_weights=weights == "mean")
    assert mixed == [1]
    torch.testing.assert_close(out, expected, **TOLERANCE)
    assert (maps is None) == (weights == "none")
    if maps is not None:
        torch.testing.assert_close(maps, expected_maps, **TOLERANCE)
    leaves = [*{id(x): x for x in args}.values(), *(p for n, p in model.named_parameters() if "coeff_delta" in n)]
    grad = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, leaves, grad, retain_graph=True),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_nothing_to_attend_to_gives_zeros_and_finite_gradients() -> None:
    model = adapt(Host(batch_first=True))
    x = torch.randn(B, L, E, requires_grad=True)
    mask = torch.zeros(B, L, dtype=torch.bool)
    mask[1] = True
    for need_weights in (False, True):
        out, maps = model(x, x, x, key_padding_mask=mask, need_weights=need_weights)
        assert out.isfinite().all()
        torch.testing.assert_close(out[1], model.base_model.model.attn.out_proj.bias.expand(L, E))
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()
        if maps is not None:
            assert (maps[1] == 0).all()
            assert (maps[0] != 0).all()


def test_dropout_is_torchs_own_before_the_mix() -> None:
    model = adapt(Host(dropout=0.5, batch_first=True))
    x = torch.randn(B, L, E)
    assert torch.equal(model(x, x, x)[0], model(x, x, x)[0])
    model.train()
    for need_weights in (False, True):
        assert not torch.equal(
            model(x, x, x, need_weights=need_weights)[0], model(x, x, x, need_weights=need_weights)[0]
        )
    with torch.no_grad():
        coeff = model.base_model.model.attn.coefficients.coeff()
        torch.manual_seed(3)
        _, ours = model(x, x, x, average_attn_weights=False)
        torch.manual_seed(3)
        with model.disable_adapter():
            _, dropped = model(x, x, x, average_attn_weights=False)
    assert 0.2 < (dropped == 0).float().mean() < 0.8
    torch.testing.assert_close(ours, torch.einsum("hi,bils->bhls", coeff, dropped), **TOLERANCE)


def test_autocast_is_that_of_the_base() -> None:
    model = adapt(Host(batch_first=True))
    x = torch.randn(B, L, E)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, x, x, need_weights=False)[0]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x, x, x, need_weights=False)[0], atol=5e-2, rtol=5e-2)


def test_mixed_batch() -> None:
    model = adapt(Host())  # sequence first: the batch is the second dimension
    model.add_adapter("other", CoeffConfig())
    tiny.randomise(model, seed=5)
    x = torch.randn(L, 3, E)
    together = model.base_model.model.attn
    together.coefficients.set_samples(["other", "__base__", "default"])
    out = model(x, x, x)[0]
    together.coefficients.set_samples(None)
    for i, name in ((0, "other"), (2, "default")):
        model.set_adapter(name)
        torch.testing.assert_close(out[:, i], model(x, x, x)[0][:, i], **TOLERANCE)
    with model.disable_adapter():
        torch.testing.assert_close(out[:, 1], model(x, x, x)[0][:, 1], **TOLERANCE)


def test_wrong_masks_raise_as_in_torch() -> None:
    model = adapt(Host(batch_first=True))
    x = torch.randn(B, L, E)
    with pytest.raises(RuntimeError, match=r"key_padding_mask must be \(B, S\) = \(2, 5\); got \(2, 4\)"):
        model(x, x, x, key_padding_mask=torch.zeros(B, L - 1, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"\(2, 5, 5\)|\(6, 5, 5\); got \(1, 5\)"):
        model(x, x, x, attn_mask=torch.zeros(1, L))
    with pytest.raises(RuntimeError, match="is_causal=True"):
        model(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([torch.randn(3, E), torch.randn(2, E)])
    with pytest.raises(RuntimeError, match="nested tensor must attend to itself"):
        model(nested, nested, nested, need_weights=True)


def test_own_forward_is_refused() -> None:
    class OtherAttention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, x, x, need_weights=False)[0]

    with pytest.raises(UnsupportedModelError, match="OtherAttention"):
        get_peft_model(nn.Sequential(OtherAttention(E, H)), CoeffConfig())
    hooked = Host()
    hooked.attn.forward = hooked.attn.forward
    with pytest.raises(UnsupportedModelError, match="MultiheadAttention must run the forward of its class"):
        get_peft_model(hooked, CoeffConfig())
