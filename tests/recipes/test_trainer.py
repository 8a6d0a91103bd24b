from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from coeff_tuning import CoeffConfig, add_coeff
from coeff_tuning.errors import RunError
from coeff_tuning.recipes.trainer import CoeffTrainer, coeff_parameters, load_adapters


def _model(bert: Path) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.3))
    return add_coeff(model, CoeffConfig(task_type="SEQ_CLS"), adapter_name="coeff")


def _trainer(bert: Path, folder: Path, *callbacks: tf.TrainerCallback) -> CoeffTrainer:
    ids = torch.randint(3, 15, (24, 6), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": int(row[0] % 2)} for row in ids]
    arguments = tf.TrainingArguments(
        str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_strategy="steps",
        save_steps=2,
        disable_tqdm=True,
        use_cpu=True,
    )
    tf.set_seed(0)
    return CoeffTrainer(
        model=_model(bert), args=arguments, train_dataset=rows, coeff_learning_rate=0.05, callbacks=list(callbacks)
    )


class _Kill(tf.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_lora_has_a_group_where_asked_for(bert: Path, tmp_path: Path) -> None:
    trainer = _trainer(bert, tmp_path)
    trainer.lora_learning_rate = 0.003
    optimizer = trainer.create_optimizer()
    (own,) = [g for g in optimizer.param_groups if g["lr"] == 0.003]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert {names[id(p)].split(".")[-3] for p in own["params"]} == {"lora_A", "lora_B"}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(_trained(trainer.model))


def test_coefficients_have_their_own_group(bert: Path, tmp_path: Path) -> None:
    trainer = _trainer(bert, tmp_path)
    optimizer = trainer.create_optimizer()
    (own,) = [g for g in optimizer.param_groups if g["lr"] == 0.05]
    assert [p.shape for p in own["params"]] == [(4, 4), (4, 4)]
    assert own["weight_decay"] == 0.0
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trainer.model.parameters() if p.requires_grad)


def test_a_run_that_was_killed_ends_with_the_same_weights(bert: Path, tmp_path: Path) -> None:
    whole = _trainer(bert, tmp_path / "whole")
    whole.train()
    killed = _trainer(bert, tmp_path / "killed", _Kill())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    # The step of the kill was not saved: the newest checkpoint is older.
    resumed = _trainer(bert, tmp_path / "killed")
    start = _trained(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-4"))
    expected, got = _trained(whole.model), _trained(resumed.model)
    assert expected.keys() == got.keys()
    assert any("lora" in name for name in got)
    assert any("coeff" in name for name in got)
    assert any("classifier" in name for name in got)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=name)
        assert not torch.equal(value, start[name]), name


def test_load_adapters_restores_all_and_changes_no_state(bert: Path, tmp_path: Path) -> None:
    model = _model(bert)
    active, trainable = model.active_adapters, set(_trained(model))
    for parameter in coeff_parameters(model):
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    other = _model(bert)
    load_adapters(other, tmp_path)
    for left, right in zip(coeff_parameters(model), coeff_parameters(other), strict=True):
        assert torch.equal(left, right)
        assert left.abs().sum() > 0
    assert other.active_adapters == active
    assert set(_trained(other)) == trainable
    assert load_file(tmp_path / "coeff" / "adapter_model.safetensors")


def test_checkpoint_without_an_adapter_is_refused(bert: Path, tmp_path: Path) -> None:
    model = _model(bert)
    model.save_pretrained(tmp_path)
    (tmp_path / "coeff" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="holds no weights for adapter 'coeff'"):
        load_adapters(model, tmp_path)
