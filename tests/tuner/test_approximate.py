"""merge_approximately(): exact where it can be, the closest of a head's rank where not, and errors as measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, merge_approximately
from coeff_tuning.binders.projections import bias_of, weight_of
from coeff_tuning.errors import MergeError
from coeff_tuning.tuner.merge import find_projections
from tests import tiny
from tests.binders import diffusers_cases, timm_cases
from tests.tiny import deltas
from tests.tuner.test_merge import EXACT, build, llama, louder, run

APPROXIMATE = ["llama", "phi3", "olmo2", "vit", "gpt2", "bert", "modernbert", "opt", "t5", "swin", "albert", "esm"]


def capture(model: nn.Module, names: list[str], inputs: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The value inputs of each attention module, by hooks of the test's own, and the output."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name in names:
        layer = find_projections(model, name, 3).value.layer
        store = seen[name]
        handles.append(layer.register_forward_pre_hook(lambda _, args, store=store: store.append(args[0])))
    out = run(model, inputs)
    for handle in handles:
        handle.remove()
    return {name: torch.cat([x.flatten(0, -2) for x in xs]) for name, xs in seen.items()}, out


def products(model: nn.Module, name: str, coeff: Tensor | None = None, heads: int = 3) -> list[Tensor]:
    """What map i carries, `(X, D)`, in plain loops."""
    found = find_projections(model, name, heads)
    wo, wv = weight_of(found.outputs[0]).double(), weight_of(found.value).double()
    size, group = wo.shape[1] // heads, heads // found.kv_heads
    coeff = torch.eye(heads) if coeff is None else coeff
    result = []
    for i in range(heads):
        total = torch.zeros(wv.shape[1], wo.shape[0], dtype=torch.float64)
        for h in range(heads):
            values = wv[(h // group) * size : (h // group + 1) * size]
            total += coeff[h, i].double() * (wo[:, h * size : (h + 1) * size] @ values).T
        result.append(total)
    return result


def coefficients(model: nn.Module) -> dict[str, Tensor]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CoeffLayer)}
    return {name.removesuffix(".coefficients"): layer.coeff().detach() for name, layer in layers.items()}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("family", APPROXIMATE)
def test_reported_errors_are_the_measured_ones(family: str, calibrated: bool) -> None:
    model, inputs = build(family)
    base = model.get_base_model()
    coeffs = coefficients(base)
    heads = {name: len(coeff) for name, coeff in coeffs.items()}
    wanted = {name: products(base, name, coeff, heads[name]) for name, coeff in coeffs.items()}
    values, before = capture(base, list(coeffs), inputs)
    merged, report = merge_approximately(model, [inputs] if calibrated else None)
    assert not any(isinstance(m, CoeffLayer) for m in merged.modules())
    after, mask = run(merged, inputs), inputs.get("attention_mask")
    if mask is not None and mask.shape == after.shape[:2]:
        before, after = before[mask == 1], after[mask == 1]
    assert list(report.modules) == list(coeffs)
    for name, error in report.modules.items():
        x = values[name].double() if calibrated else torch.eye(values[name].shape[1], dtype=torch.float64)
        got = products(merged, name, heads=heads[name])
        change = sum((x @ (a - b)).square().sum() for a, b in zip(got, wanted[name], strict=True))
        total = sum((x @ b).square().sum() for b in wanted[name])
        assert error == pytest.approx(float((change / total).sqrt()), rel=1e-6)
        assert 0.001 < error < 1.0
    if calibrated:
        assert report.output == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
        assert report.output > 0
    else:
        assert report.output is None


def test_inputs_make_the_output_closer() -> None:
    """Value inputs of low rank: all that they carry fits into the heads, which no direction-blind merge can find."""
    torch.manual_seed(0)
    model = timm_cases.Host(louder(nn.MultiheadAttention(24, 3, batch_first=True)))
    model = tiny.randomise(get_peft_model(model, CoeffConfig())).eval()
    x = torch.randn(2, 9, 5) @ torch.randn(5, 24)
    batch = {"query": torch.randn(2, 9, 24), "key": x, "value": x, "need_weights": False}
    with torch.no_grad():
        unmerged = model(**batch)[0]
    errors = {}
    for name, inputs in (("with", [batch]), ("without", None)):
        merged, report = merge_approximately(copy.deepcopy(model), inputs)
        with torch.no_grad():
            errors[name] = float((merged(**batch)[0] - unmerged).norm() / unmerged.norm())
        assert (report.output is None) == (inputs is None)
    assert errors["with"] < 1e-3
    assert errors["without"] > 0.05


@pytest.mark.parametrize("family", [tf.LlamaForCausalLM, tf.Starcoder2ForCausalLM])
def test_nothing_is_approximated_where_the_merge_is_exact(family: type[nn.Module]) -> None:
    model, inputs = llama(1, family)
    model = tiny.randomise(get_peft_model(model, CoeffConfig())).eval()
    unmerged = run(model, inputs)
    merged, report = merge_approximately(model, [inputs])
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)
    assert set(report.modules.values()) == {0.0}
    assert report.output < 1e-6


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
def test_rank_one_products_merge_exactly_with_their_bias(family: str) -> None:
    """Value heads of rank 1 with biases: sums of all three fit into one head, so nothing but the bias can go wrong."""
    model, inputs = build(family)
    inputs.pop("attention_mask", None)  # a query with nothing to attend to gets the bias, which its mixed output lacks
    for name, coeff in coefficients(model.get_base_model()).items():
        value = find_projections(model.get_base_model(), name, len(coeff)).value
        weight = weight_of(value)
        weight.copy_(torch.randn(len(weight), 1) @ torch.randn(1, weight.shape[1]))
        assert bias_of(value).abs().min() > 0
    unmerged = run(model, inputs)
    with pytest.raises(MergeError, match="entries in 2 modules"):
        model.merge_and_unload()
    with model.disable_adapter():
        assert (run(model, inputs) - unmerged).abs().max() > 1e-2
    merged, report = merge_approximately(model, [inputs])
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)
    assert max(report.modules.values()) < 1e-5


def test_exact_value_heads_beside_others_keep_their_values() -> None:
    model, _ = llama(3)  # groups of two heads
    model = get_peft_model(model, CoeffConfig()).eval()
    for parameter in deltas(model):
        parameter.data[0, 1], parameter.data[3, 2], parameter.data[0, 4] = 0.7, -0.5, 0.3  # map 4 feeds head 0
    former = [layer.self_attn.v_proj.weight.clone() for layer in model.get_base_model().model.layers]
    merged, report = merge_approximately(model)
    for layer, before in zip(merged.model.layers, former, strict=True):
        changed = (layer.self_attn.v_proj.weight != before).unflatten(0, (3, -1)).flatten(1).any(1)
        assert changed.tolist() == [False, False, True]
    assert all(0 < error < 0.5 for error in report.modules.values())


@pytest.mark.parametrize("case", ["layers.attention.Attention", "models.pvt_v2.Attention", "models.cait.ClassAttn"])
def test_timm_with_low_rank_values(case: str) -> None:
    """As above, in timm's fused and separate projections."""
    host, x, kwargs = timm_cases.build(case)
    model = tiny.randomise(get_peft_model(host, CoeffConfig())).eval()
    weight = weight_of(find_projections(host, "attn", 3).value)
    weight.copy_(torch.randn(len(weight), 1) @ torch.randn(1, weight.shape[1]))
    with torch.no_grad():
        unmerged = model(x, **kwargs)
        merged, _ = merge_approximately(model)
        torch.testing.assert_close(merged(x, **kwargs), unmerged, **EXACT)


def test_after_lora_was_merged() -> None:
    model, inputs = llama(2)
    lora = LoraConfig(target_modules=["v_proj", "o_proj"], r=2, init_lora_weights=False)
    model = tiny.randomise(add_coeff(get_peft_model(model, lora), CoeffConfig())).eval()
    with pytest.raises(MergeError, match="Another method must be merged before"):
        merge_approximately(model)
    unmerged = run(model, inputs)
    with pytest.warns(UserWarning, match="stay active"):
        active = model.merge_and_unload()
    merged, report = merge_approximately(active, [inputs])
    assert not hasattr(merged, "peft_config")
    kept = inputs["attention_mask"] == 1
    error = (run(merged, inputs) - unmerged)[kept].norm() / unmerged[kept].norm()
    assert report.output == pytest.approx(float(error), rel=1e-3)


# What is refused, before anything changes


def refuse(model: PeftModel, message: str, inputs: Any = None, error: type[Exception] = MergeError) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        merge_approximately(model, inputs)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen2", "layers.0.self_attn' cannot be merged.*value bias that only an output bias"),
        ("gpt_oss", "because of its sinks"),
        ("gpt_neox", "interleaved with queries and keys"),
    ],
)
def test_values_that_cannot_be_changed(family: str, message: str) -> None:
    refuse(build(family)[0], message)


def test_streams_with_projections_of_their_own() -> None:
    model, _ = diffusers_cases.build("sd3")
    refuse(tiny.randomise(get_peft_model(model, CoeffConfig())).eval(), "text and image have value projections")


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5, "vdim": 7}])
def test_added_values_of_torch(options: dict[str, Any]) -> None:
    model = timm_cases.Host(nn.MultiheadAttention(12, 3, **options))
    refuse(tiny.randomise(get_peft_model(model, CoeffConfig())).eval(), "'attn' cannot be merged.*(add_bias_kv|kdim)")


def test_shared_value_projections() -> None:
    model, _ = build("vit")
    layers = model.get_base_model().layers
    layers[1].attention.v_proj = layers[0].attention.v_proj
    refuse(model, "Linear or its weight is shared")


def test_misuse() -> None:
    model, inputs = build("llama")
    refuse(model, "must be a list of batches; got dict", inputs, TypeError)
    refuse(model.train(), "call eval", None, ValueError)
    with pytest.raises(TypeError, match="got Linear"):
        merge_approximately(nn.Linear(2, 2))
    text = {"input_ids": tiny.build("clip")[1]["input_ids"]}

    class Text(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.clip = model

        def forward(self, **kwargs: Any) -> Any:
            return self.clip.get_text_features(**kwargs)

    host = Text(tiny.build("clip")[0])
    model = tiny.randomise(get_peft_model(host, CoeffConfig(allow_unused=True))).eval()
    refuse(model, r"they miss \['clip.vision_model", [text], ValueError)
