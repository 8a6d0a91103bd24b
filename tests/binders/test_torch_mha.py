"""torch.nn.MultiheadAttention: every option against torch's own eager math, and no fast path past the coefficients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coeff_tuning import CoeffConfig
from coeff_tuning.errors import UnsupportedModelError
from tests import tiny
from tests.binders.literal import literal_mixing

B, L, S, H, E = 2, 5, 7, 3, 12
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# torch warns that its own encoder makes a prototype nested tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


class Host(nn.Module):
    """A model with one attention module, `self` or cross."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(E, H, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)


class Stack(nn.Module):
    """An encoder whose layers and stack have fast paths: even heads, batch first."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 20, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


class VisionBlock(nn.Module):
    """Built and called as the encoder block of torchvision's VisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(24)
        self.self_attention = nn.MultiheadAttention(24, 4, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        return x + y


@contextmanager
def fast_path(enabled: bool) -> Iterator[None]:
    former = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(former)


def adapt(model: nn.Module, **config: Any) -> PeftModel:
    return tiny.randomise(get_peft_model(model, CoeffConfig(**{"coeff_dropout": 0.0, **config})).eval())


def inputs(kind: str, batch_first: bool, kdim: int = E, vdim: int = E) -> list[Tensor]:
    shapes = {"query": (B, L, E), "key": (B, S, kdim), "value": (B, S, vdim)}
    if kind == "self":
        x = torch.randn(shapes["query"])
        x = x if batch_first else x.transpose(0, 1)
        return [x, x, x]
    tensors = [torch.randn(shape) for shape in shapes.values()]
    if kind == "unbatched":
        return [x[0] for x in tensors]
    return [x if batch_first else x.transpose(0, 1) for x in tensors]


def padding(keys: int, kind: str) -> Tensor:
    mask = torch.zeros(B, keys, dtype=torch.bool)
    mask[1, -2:] = True
    return mask if kind == "bool" else torch.randn(B, keys).masked_fill(mask, -torch.inf)


def pattern(keys: int, kind: str, per_head: bool = False) -> Tensor:
    shape = (B * H, L, keys) if per_head else (L, keys)
    mask = torch.rand(shape) < 0.3
    mask[..., 0] = False
    return mask if kind == "bool" else torch.randn(shape).masked_fill(mask, -torch.inf)


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "self": ({"batch_first": True}, "self", {}),
    "self-seq-first": ({}, "self", {}),
    "cross": ({"batch_first": True}, "cross", {}),
    "cross-seq-first": ({}, "cross", {}),
    "no-bias": ({"bias": False}, "cross", {}),
    "kdim-vdim": ({"kdim": 11, "vdim": 13, "batch_first": True}, "cross", {}),
    "unbatched": ({}, "unbatched", {"attn_mask": pattern(S, "bool")}),
    "padding-bool": ({}, "cross", {"key_padding_mask": padding(S, "bool")}),
    "padding-float": ({}, "cross", {"key_padding_mask": padding(S, "float")}),
    "mask-bool": ({"batch_first": True}, "cross", {"attn_mask": pattern(S, "bool")}),
    "mask-float": ({}, "cross", {"attn_mask": pattern(S, "float")}),
    "mask-per-head": ({}, "cross", {"attn_mask": pattern(S, "bool", per_head=True)}),
    "both-masks": ({}, "cross", {"attn_mask": pattern(S, "bool"), "key_padding_mask": padding(S, "bool")}),
    "both-float": ({}, "cross", {"attn_mask": pattern(S, "float"), "key_padding_mask": padding(S, "float")}),
    "bias-kv": ({"add_bias_kv": True}, "cross", {"attn_mask": pattern(S, "bool")}),
    "zero-attn": ({"add_zero_attn": True}, "cross", {"key_padding_mask": padding(S, "bool")}),
    "bias-kv-zero-attn-float": (
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        "cross",
        {"attn_mask": pattern(S, "float"), "key_padding_mask": padding(S, "float")},
    ),
    "causal": (
        {"batch_first": True},
        "self",
        {"attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1), "is_causal": True},
    ),
    "causal-and-padding": (
        {"batch_first": True},
        "self",
        {
            "attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1),
            "is_causal": True,
            "key_padding_mask": padding(L, "bool"),
        },
    ),
}


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


@contextmanager
def literal_by_weights(model: nn.Module) -> Iterator[None]:
    """Literal mixing for callers that pass need_weights=False, for which torch has no eager math: ask for the maps."""

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True}

    hosts = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    handles = [host.register_forward_pre_hook(ask, with_kwargs=True) for host in hosts]
    try:
        with literal_mixing(model) as mixed, model.disable_adapter():
            yield
        assert mixed[0] == len(hosts)
    finally:
        for handle in handles:
            handle.remove()


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
