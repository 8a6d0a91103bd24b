"""Models with torch.nn.MultiheadAttention: no fast path past the coefficients, and the life cycle."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests import tiny
from tests.binders.literal import literal_mixing
from tests.binders.torch_mha_cases import (
    TOLERANCE,
    B,
    E,
    H,
    L,
    S,
    Stack,
    VisionBlock,
    fast_path,
    literal_by_weights,
    padding,
)
from tests.tiny import adapt

# torch warns that its own encoder makes a prototype nested tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_no_fast_path_bypasses_the_coefficients(grad: bool, padded: bool, norm_first: bool) -> None:
    model = Stack(norm_first).eval()
    x = torch.randn(B, L, 24)
    mask = padding(L, "bool") if padded else None
    kept = torch.ones(B, L, dtype=torch.bool) if mask is None else ~mask
    with torch.no_grad():
        base = model(x, mask)
    peft_model = adapt(model)
    deltas = [p for n, p in peft_model.named_parameters() if "coeff_delta" in n]
    with torch.set_grad_enabled(grad):
        ours = peft_model(x, mask)
        with fast_path(False), literal_by_weights(peft_model):
            expected = peft_model(x, mask)
    torch.testing.assert_close(ours[kept], expected[kept], **TOLERANCE)
    assert (ours - base)[kept].abs().max() > 1e-2
    if grad:
        upstream = torch.randn_like(ours[kept])
        for a, b in zip(
            torch.autograd.grad(ours[kept], deltas, upstream),
            torch.autograd.grad(expected[kept], deltas, upstream),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_off_and_unload_are_the_base_with_its_fast_path(padded: bool) -> None:
    model = Stack().eval()
    x = torch.randn(B, L, 24)
    mask = padding(L, "bool") if padded else None
    calls = []
    native = torch._transformer_encoder_layer_fwd
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    with torch.no_grad():
        base = model(x, mask)
        peft_model = adapt(model)
        with peft_model.disable_adapter():  # the first pass: adapters that are off need not take part
            assert torch.equal(peft_model(x, mask), base)
        on = peft_model(x, mask)
        with peft_model.disable_adapter():
            assert torch.equal(peft_model(x, mask), base)
        assert torch.equal(peft_model(x, mask), on)
        unloaded = peft_model.unload()
        torch._transformer_encoder_layer_fwd = lambda *args: calls.append(1) or native(*args)
        try:
            assert torch.equal(unloaded(x, mask), base)
        finally:
            torch._transformer_encoder_layer_fwd = native
    assert len(calls) == 2
    assert list(unloaded.state_dict()) == keys
    assert [type(m) for m in unloaded.modules()] == classes


def test_decoder_self_and_cross() -> None:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(E, H, 20, batch_first=True), 2)
    model = adapt(decoder)
    assert sum("coeff_delta" in n for n, _ in model.named_parameters()) == 4
    args = torch.randn(B, L, E), torch.randn(B, S, E)
    kwargs = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(L), "tgt_is_causal": True}
    kwargs["memory_key_padding_mask"] = padding(S, "float")
    ours = model(*args, **kwargs)
    with literal_by_weights(model):
        expected = model(*args, **kwargs)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_torchvision_block(training: bool) -> None:
    model = adapt(VisionBlock()).train(training)
    x = torch.randn(B, L, 24)
    with literal_by_weights(model), fast_path(False):
        expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, **TOLERANCE)
    torch.testing.assert_close(model(x), expected, **TOLERANCE)


def test_siglip_pooling_head() -> None:
    torch.manual_seed(0)
    model = adapt(tf.SiglipVisionModel(tf.SiglipVisionConfig(**tiny.VISION)))
    names = [name for name, _ in model.named_parameters() if "coeff_delta" in name]
    assert len(names) == 3
    assert "head.attention.coefficients" in names[-1]
    pixels = torch.randn(2, 3, 14, 14)
    pooled = model(pixels).pooler_output
    with literal_mixing(model) as mixed, model.disable_adapter():
        model.base_model.model.set_attn_implementation("eager")
        torch.testing.assert_close(model(pixels).pooler_output, pooled, **TOLERANCE)
    assert mixed == [3]


def test_copy_pickle_save_load_compile_checkpoint(tmp_path: Any) -> None:
    model = adapt(Stack())
    x = torch.randn(B, L, 24)
    out = model(x)
    assert torch.equal(copy.deepcopy(model)(x), out)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), out)
    assert type(copy.deepcopy(model).unload().encoder.layers[0].self_attn) is nn.MultiheadAttention
    model.save_pretrained(tmp_path)
    base = copy.deepcopy(model).unload()
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path)(x), out)
    torch.testing.assert_close(torch.compile(model.base_model.model, fullgraph=True)(x), out, **TOLERANCE)
    deltas = [p for n, p in model.named_parameters() if "coeff_delta" in n]
    plain = torch.autograd.grad(out.square().sum(), deltas)
    again = torch.autograd.grad(checkpoint(model, x, use_reentrant=False).square().sum(), deltas)
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
