"""mixing="group": only entries that merge exactly exist, in training, in files and in sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, load_coeff
from coeff_tuning.errors import AdapterMismatchError, MergeError
from tests import tiny
from tests.tiny import deltas, layers
from tests.tuner.test_merge import EXACT, llama, run

OUTSIDE = torch.ones(6, 6).bool() ^ torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool()


def group(**config: Any) -> tuple[PeftModel, dict[str, Tensor]]:
    model, inputs = llama(2)
    return get_peft_model(model, CoeffConfig(mixing="group", **config)), inputs


def train(model: PeftModel, inputs: dict[str, Tensor]) -> PeftModel:
    optimizer = torch.optim.AdamW(deltas(model), lr=0.05, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("config", [{"init": "random"}, {"parameterization": "direct"}, {"coeff_dropout": 0.0}])
def test_training_stays_within_the_groups(config: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = group(**config)
    train(model, inputs)
    for parameter, layer in zip(deltas(model), layers(model), strict=True):
        assert not parameter[OUTSIDE].any()
        assert not parameter.grad[OUTSIDE].any()
        assert parameter.grad[~OUTSIDE].any()
        assert (parameter[~OUTSIDE] != 0).all()
        assert not layer.coeff()[OUTSIDE].any()
    on = run(model, inputs)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(2)[0], tmp_path)
    assert again.peft_config["default"].mixing == "group"
    assert torch.equal(run(again, inputs), on)
    torch.testing.assert_close(run(again.merge_and_unload(), inputs), on, **EXACT)


def test_heads_that_share_no_values_get_a_factor_each() -> None:
    model, _ = tiny.build("vit")
    model = tiny.randomise(get_peft_model(model, CoeffConfig(mixing="group"))).eval()
    for layer in layers(model):
        coeff = layer.coeff()
        assert torch.equal(coeff, coeff.diag().diag())
        assert coeff.diag().unique().numel() == 3


def test_other_adapters_beside_it_are_not_masked() -> None:
    model, _ = group()
    model.add_adapter("full", CoeffConfig())
    model.set_adapter("full")
    tiny.randomise(model)
    assert all(layer.eval().coeff()[OUTSIDE].all() for layer in layers(model))
    model.delete_adapter("default")
    model.add_adapter("default", CoeffConfig())
    model.set_adapter("default")
    tiny.randomise(model)
    assert all(layer.eval().coeff()[OUTSIDE].all() for layer in layers(model))


def test_weighted_sums_keep_it_if_all_do() -> None:
    model, inputs = group(init="random")
    model.add_adapter("other", CoeffConfig(mixing="group", init="random"))
    model.add_adapter("full", CoeffConfig(init="random"))
    model.add_weighted_adapter(["default", "other"], [0.5, 2.0], "sum")
    model.add_weighted_adapter(["default", "full"], [0.5, 2.0], "wide")
    assert [model.peft_config[name].mixing for name in ("sum", "wide")] == ["group", "full"]
    for layer in layers(model):
        held = layer.adapters
        torch.testing.assert_close(held["sum"], 0.5 * held["default"] + 2 * held["other"])
        assert not held["sum"][OUTSIDE].any()
        assert held["wide"][OUTSIDE].all()
    model.base_model.set_adapter("sum")
    unmerged = run(model.eval(), inputs)
    torch.testing.assert_close(run(model.merge_and_unload(), inputs), unmerged, **EXACT)


def test_a_file_of_full_mixing_is_not_loaded_over_it(tmp_path: Path) -> None:
    full = tiny.randomise(get_peft_model(llama(2)[0], CoeffConfig()))
    full.save_pretrained(tmp_path / "full")
    model, inputs = group(init="random")
    before = run(model.eval(), inputs)
    with pytest.raises(AdapterMismatchError, match="18 such numbers of .*layers.0.*new adapter name"):
        model.load_adapter(str(tmp_path / "full"), "default")
    assert torch.equal(run(model, inputs), before)
    model.save_pretrained(tmp_path / "group")
    full.load_adapter(str(tmp_path / "group"), "default")
    assert torch.equal(run(full.eval(), inputs), before)
    model.load_adapter(str(tmp_path / "full"), "full")
    assert model.peft_config["full"].mixing == "full"


def test_beside_lora_on_the_projections_it_reads(tmp_path: Path) -> None:
    model, inputs = llama(2)
    lora = LoraConfig(target_modules=["o_proj", "v_proj"], r=2, init_lora_weights=False)
    model = add_coeff(get_peft_model(model, lora), CoeffConfig(mixing="group"))
    assert {layer.kv_heads["coeff"] for layer in layers(model)} == {2}
    on = run(train(model, inputs), inputs)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(load_coeff(llama(2)[0], tmp_path).eval(), inputs), on)


def test_mixed_batches() -> None:
    model, inputs = group()
    model.add_adapter("full", CoeffConfig())
    tiny.randomise(model).eval()
    with torch.no_grad():
        both = model(**inputs, adapter_names=["default", "full"]).logits
    for i, name in enumerate(("default", "full")):
        model.set_adapter(name)
        torch.testing.assert_close(both[i], run(model, inputs)[i], **EXACT)


def test_compiles_in_one_graph() -> None:
    model, inputs = group()
    tiny.randomise(model).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs), **EXACT)


def test_a_module_whose_values_are_not_known_is_refused() -> None:
    from tests.binders import timm_cases

    host, _, _ = timm_cases.build("models.xcit.XCA")
    with pytest.raises(MergeError, match=r"to train only the entries that merge; that of timm.models.xcit.XCA is not"):
        get_peft_model(host, CoeffConfig(mixing="group"))
    assert not any(isinstance(m, CoeffLayer) for m in host.modules())


def test_unknown_name_raises() -> None:
    with pytest.raises(ValueError, match=r"\('full', 'group'\); got 'diagonal'"):
        CoeffConfig(mixing="diagonal")
