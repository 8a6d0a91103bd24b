"""Coefficients beside LoRA: what PEFT's calls do to the two, and how misuse raises; all methods: test_combinations."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, load_coeff
from coeff_tuning.errors import AdapterFileError, AdapterMismatchError, CombinationError
from tests import tiny
from tests.tuner.test_combinations import INPUTS, classifier, run


def lora() -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])


def both() -> PeftModel:
    return add_coeff(get_peft_model(classifier(), lora()), CoeffConfig(coeff_dropout=0.0))


def train(model: PeftModel) -> PeftModel:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**INPUTS).loss.backward()
        optimizer.step()
    return model.eval()


def test_the_trained_head_is_used() -> None:
    model = train(both())
    on = run(model)
    model.base_model.model.classifier.modules_to_save["default"].weight.data.zero_()
    assert not torch.allclose(run(model), on)


def test_a_combination_is_loaded_whole_or_piece_by_piece(tmp_path: Path) -> None:
    model = train(both())
    on = run(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "coeff" / "adapter_model.safetensors").is_file()
    assert torch.equal(run(load_coeff(classifier(), tmp_path)), on)
    one_by_one = PeftModel.from_pretrained(classifier(), tmp_path)
    assert not torch.allclose(run(one_by_one), on)
    assert torch.equal(run(load_coeff(one_by_one, tmp_path / "coeff")), on)
    alone = PeftModel.from_pretrained(classifier(), tmp_path / "coeff")
    assert isinstance(alone, PeftModel)


def test_a_file_is_not_loaded_over_an_adapter_of_another_method(tmp_path: Path) -> None:
    model = train(both())
    model.save_pretrained(tmp_path)
    on = run(model)
    with pytest.raises(AdapterMismatchError, match="must hold an adapter of LORA, which 'default' is; .* one of COEFF"):
        model.load_adapter(tmp_path / "coeff", "default")
    with pytest.raises(AdapterMismatchError, match="must hold an adapter of COEFF, which 'coeff' is; .* one of LORA"):
        model.load_adapter(tmp_path, "coeff")
    assert torch.equal(run(model), on)
    for other in (model, get_peft_model(classifier(), lora())):
        with pytest.raises(ValueError, match="'default' is the LORA adapter of this model"):
            load_coeff(other, tmp_path / "coeff", "default")


def test_a_combination_is_not_loaded_by_half_into_coefficients_alone(tmp_path: Path) -> None:
    both().save_pretrained(tmp_path)
    model = get_peft_model(classifier(), CoeffConfig())
    with pytest.raises(CombinationError, match="an adapter of LORA, which cannot join a model of coefficients alone"):
        load_coeff(model, tmp_path)
    load_coeff(model, tmp_path / "coeff", "more")
    assert list(model.peft_config) == ["default", "more"]


def test_resaving_and_swapping_in_place(tmp_path: Path) -> None:
    model = train(both())
    on = run(model)
    model.save_pretrained(tmp_path)
    tiny.randomise(model)
    assert not torch.allclose(run(model), on)
    load_coeff(model, tmp_path)  # over the existing adapter
    assert torch.equal(run(model), on)
    assert list(model.peft_config) == ["default", "coeff"]


def test_loras_own_merge_leaves_coefficients_active() -> None:
    model = train(both())
    on = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), on, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(run(model), on, atol=1e-5, rtol=1e-4)
    with pytest.warns(UserWarning, match="stay active in the merged model"):
        merged = model.merge_and_unload()
    assert list(merged.peft_config) == ["coeff"]
    torch.testing.assert_close(run(merged), on, atol=1e-5, rtol=1e-4)
    for layer in (m for m in merged.modules() if isinstance(m, CoeffLayer)):
        layer.enable_adapters(False)
    assert not torch.allclose(run(merged), on, atol=1e-4)


def test_loaded_adapters_can_stay_trainable(tmp_path: Path) -> None:
    both().save_pretrained(tmp_path)
    frozen = load_coeff(classifier(), tmp_path)
    assert not any(p.requires_grad for p in frozen.parameters())
    trainable = load_coeff(classifier(), tmp_path, is_trainable=True)
    names = {name for name, p in trainable.named_parameters() if p.requires_grad}
    assert names == {name for name, p in both().named_parameters() if p.requires_grad}


def test_second_lora_adapter_beside_coefficients(tmp_path: Path) -> None:
    model = train(both())
    on = run(model)
    model.add_adapter("other", lora())
    model.set_adapter("other")
    assert not torch.allclose(run(model), on)
    model.set_adapter("default")
    assert torch.equal(run(model), on)


def test_each_method_has_an_active_adapter_of_its_own() -> None:
    model = train(both())
    on = run(model)
    add_coeff(model, CoeffConfig(), "other")
    tiny.randomise(model.eval(), seed=7)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.endswith("coeff_delta.other") for name in trainable)
    assert not any(name.endswith("coeff_delta.coeff") for name in trainable)
    other = run(model)
    model.set_adapter("coeff")
    assert model.base_model.model.classifier.active_adapters == ["default"]  # the head is still LoRA's
    assert not torch.allclose(run(model), other, atol=1e-4)
    model.set_adapter("other")
    assert torch.equal(run(model), other)
    model.delete_adapter("coeff")
    assert torch.equal(run(model), other)
    assert not torch.allclose(other, on, atol=1e-4)


def test_deleting_the_coefficients_leaves_lora_alone() -> None:
    model = train(both())
    alone = train(get_peft_model(classifier(), lora()))
    model.delete_adapter("coeff")
    assert type(model) is type(alone)
    assert not any("coeff" in name for name, _ in model.named_parameters())
    alone.load_state_dict(model.state_dict())
    assert torch.equal(run(model), run(alone))


@pytest.mark.parametrize("targets", [None, ["0"], ["0.base_layer"], ".*"], ids=str)
def test_attention_that_lora_wraps_whole_is_refused(targets: Any) -> None:
    attention = nn.Sequential(*(nn.MultiheadAttention(24, 3) for _ in range(2)))
    model = get_peft_model(attention, LoraConfig(target_modules=["0"]))
    with pytest.raises(CombinationError, match=r"'0' is a peft\.tuners\.lora\.layer\.MultiheadAttention around one"):
        add_coeff(model, CoeffConfig(target_modules=targets))
    assert list(model.peft_config) == ["default"]
    add_coeff(model, CoeffConfig(target_modules=["1"]))
    assert [name for name, m in attention.named_modules() if isinstance(m, CoeffLayer)] == ["1.coefficients"]


def test_deleting_the_method_that_owns_the_model_raises() -> None:
    model = train(both())
    on = run(model)
    with pytest.raises(CombinationError, match="'default' is the only adapter.*unload"):
        model.delete_adapter("default")
    assert torch.equal(run(model), on)


def test_unload_gives_the_base_model() -> None:
    base = classifier()
    unloaded = train(both()).unload()
    assert list(unloaded.state_dict()) == list(base.state_dict())
    unloaded.classifier = base.classifier  # PEFT's own unload leaves the trained head in place
    assert torch.equal(run(unloaded), run(base))


def test_reloading_a_saved_combination_over_itself_restores_both(tmp_path: Path) -> None:
    model = train(both())
    on = run(model)
    model.save_pretrained(tmp_path)
    train(model)
    model.load_adapter(str(tmp_path), "default")  # what Trainer does with load_best_model_at_end
    assert torch.equal(run(model), on)


def test_deepcopy_and_pickle_of_a_combination() -> None:
    model = train(both())
    on = run(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(run(twin), on)
        twin.delete_adapter("coeff")
    assert torch.equal(run(model), on)


# Misuse


def first_error(model: PeftModel) -> None:
    model(**INPUTS)


@pytest.mark.parametrize("second_name", ["default", "lora"])
def test_coefficients_first_then_lora_raises(second_name: str) -> None:
    model = get_peft_model(classifier(), CoeffConfig(task_type="SEQ_CLS"))
    with pytest.warns(UserWarning), pytest.raises(CombinationError, match="add_coeff"):
        first_error(get_peft_model(model, lora(), adapter_name=second_name))


@pytest.mark.parametrize("after_a_pass", [False, True])
def test_coefficients_first_then_lora_cannot_be_saved(after_a_pass: bool, tmp_path: Path) -> None:
    model = get_peft_model(classifier(), CoeffConfig(task_type="SEQ_CLS"))
    if after_a_pass:
        first_error(model)
    with pytest.warns(UserWarning):
        stacked = get_peft_model(model, lora())
    with pytest.raises(CombinationError, match="add_coeff"):
        stacked.save_pretrained(tmp_path)
    with pytest.raises(CombinationError, match="add_coeff"):
        first_error(stacked)


@pytest.mark.parametrize("unwrap", [False, True], ids=["peft-model", "base-model"])
@pytest.mark.parametrize("name", ["default", "coeff"])
def test_get_peft_model_on_a_lora_model_raises_and_changes_nothing(unwrap: bool, name: str) -> None:
    model = train(get_peft_model(classifier(), lora()))
    on = run(model)
    target = model.get_base_model() if unwrap else model
    with pytest.warns(UserWarning), pytest.raises(CombinationError, match="add_coeff"):
        get_peft_model(target, CoeffConfig(task_type="SEQ_CLS"), adapter_name=name)
    assert torch.equal(run(model), on)
    assert list(model.peft_config) == ["default"]
    assert isinstance(model.peft_config["default"], LoraConfig)


def test_mixed_model_raises() -> None:
    with pytest.raises(ValueError, match="COEFF"):
        get_peft_model(classifier(), CoeffConfig(), mixed=True)


def test_other_peft_types_cannot_join_by_add_adapter() -> None:
    with pytest.raises(ValueError, match="COEFF"):
        get_peft_model(classifier(), lora()).add_adapter("second", CoeffConfig())


@pytest.mark.parametrize(
    ("make", "config", "error", "message"),
    [
        (classifier, CoeffConfig(), TypeError, "BertForSequenceClassification.*get_peft_model"),
        (lambda: get_peft_model(classifier(), lora()), lora(), TypeError, "LoraConfig"),
        (lambda: get_peft_model(classifier(), CoeffConfig()), CoeffConfig(), CombinationError, "add_adapter"),
        (
            lambda: get_peft_model(classifier(), lora()),
            CoeffConfig(modules_to_save=["classifier"]),
            CombinationError,
            r"\['classifier'\]",
        ),
        (both, CoeffConfig(), ValueError, r"\['default', 'coeff'\]"),
        (lambda: get_peft_model(classifier(), lora()), CoeffConfig(target_modules=["nope"]), ValueError, "'nope'"),
    ],
)
def test_add_coeff_refusals(make: Any, config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        add_coeff(make(), config)


def test_refused_add_coeff_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = train(get_peft_model(classifier(), lora()))
    on = run(model)
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="nope"):
        add_coeff(model, CoeffConfig(target_modules=["nope"]))
    assert torch.equal(run(model), on)
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert list(model.peft_config) == ["default"]


def test_load_coeff_without_coefficients_raises(tmp_path: Path) -> None:
    get_peft_model(classifier(), lora()).save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="it holds none"):
        load_coeff(classifier(), tmp_path)


def test_load_coeff_of_another_model_raises(tmp_path: Path) -> None:
    both().save_pretrained(tmp_path)
    torch.manual_seed(0)
    deeper = tf.BertForSequenceClassification(tf.BertConfig(**{**tiny.TEXT, "num_hidden_layers": 3}, num_labels=5))
    model = get_peft_model(deeper, lora())
    with pytest.raises(AdapterMismatchError, match="1 modules have none saved"):
        load_coeff(model, tmp_path / "coeff")
    assert list(model.peft_config) == ["default"]
    assert not any("coeff" in name for name, _ in model.named_parameters())
