"""Adapter files: broken ones are named, foreign ones are refused, earlier ones survive a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from coeff_tuning import CoeffConfig, add_coeff, load_coeff
from coeff_tuning.errors import AdapterFileError, AdapterMismatchError
from tests import tiny

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = tiny.build("bert")
    tiny.randomise(get_peft_model(model, CoeffConfig())).save_pretrained(tmp_path)
    return tmp_path


def bert(**changes: Any) -> torch.nn.Module:
    return tf.BertModel(tf.BertConfig(**{**tiny.TEXT, **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not a safetensors file at all",
        lambda data: data[:-1],
    ],
    ids=["half", "empty", "text", "one-byte-short"],
)
def test_damaged_weights_are_named(saved: Path, damage: Any) -> None:
    file = saved / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(AdapterFileError, match=f"{file} must be a complete.* {file.stat().st_size} bytes"):
        PeftModel.from_pretrained(bert(), saved)


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(AdapterFileError, match=r"must hold adapter_model.safetensors; it holds \['README.md', 'ada"):
        PeftModel.from_pretrained(bert(), saved)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny.build("vit")[0], "2 modules have none saved.* 2 saved matrices have no module"),
        (lambda: bert(num_hidden_layers=3), "1 modules have none saved.*layer.2.* 0 saved"),
        (lambda: bert(num_hidden_layers=1), "0 modules have none saved.* 1 saved matrices have no module.*layer.1"),
        (lambda: bert(num_attention_heads=6), r"\(3, 3\) in the file and \(6, 6\) in the model"),
        (lambda: tf.BertForSequenceClassification(bert().config), "2 modules have none saved"),
    ],
    ids=["vit", "deeper", "shallower", "more-heads", "other-prefix"],
)
def test_adapter_of_another_model_is_refused(saved: Path, model: Any, message: str) -> None:
    with pytest.raises(AdapterMismatchError, match=message):
        PeftModel.from_pretrained(model(), saved)


@pytest.mark.parametrize(
    "values", [torch.full((3, 3), float("nan")), torch.ones(3, 3, dtype=torch.int64)], ids=["nan", "int64"]
)
def test_values_that_are_no_coefficients_are_refused(saved: Path, values: torch.Tensor) -> None:
    weights = load_file(saved / WEIGHTS)
    save_file({**weights, next(iter(weights)): values}, saved / WEIGHTS)
    with pytest.raises(AdapterMismatchError, match=f"holds {values.dtype}"):
        PeftModel.from_pretrained(bert(), saved)


def test_head_of_another_size_leaves_the_coefficients_alone(tmp_path: Path) -> None:
    def classifier(labels: int) -> PeftModel:
        config = tf.BertConfig(**tiny.TEXT, num_labels=labels)
        return get_peft_model(tf.BertForSequenceClassification(config), CoeffConfig(task_type="SEQ_CLS"))

    tiny.randomise(classifier(2)).save_pretrained(tmp_path)
    peft_model = tiny.randomise(classifier(5), seed=3)
    before = {name: p.clone() for name, p in peft_model.named_parameters()}
    with pytest.raises(AdapterMismatchError, match=r"\(2, 24\) in the file and \(5, 24\) in the model"):
        peft_model.load_adapter(tmp_path, "default")
    assert all(torch.equal(p, before[name]) for name, p in peft_model.named_parameters())


def test_refused_swap_keeps_the_old_numbers(saved: Path) -> None:
    model, inputs = tiny.build("bert")
    peft_model = PeftModel.from_pretrained(model, saved)
    with torch.no_grad():
        before = tiny.output(peft_model, inputs)
        weights = load_file(saved / WEIGHTS)
        save_file({next(iter(weights)): torch.ones(3, 3)}, saved / WEIGHTS)
        with pytest.raises(AdapterMismatchError, match="1 modules have none saved"):
            peft_model.load_adapter(saved, "default")
        assert torch.equal(tiny.output(peft_model, inputs), before)


@pytest.mark.parametrize("kinds", [("residual", "direct"), ("direct", "residual")])
def test_file_of_another_parameterization_is_not_misread(kinds: tuple[str, str], tmp_path: Path) -> None:
    model, inputs = tiny.build("bert")
    first, second = (get_peft_model(tiny.build("bert")[0], CoeffConfig(parameterization=kind)) for kind in kinds)
    tiny.randomise(first).save_pretrained(tmp_path)
    with torch.no_grad():
        before = tiny.output(second, inputs)
        with pytest.raises(AdapterMismatchError, match=r"one of the two is 'direct'.* new adapter name"):
            second.load_adapter(tmp_path, "default")
        assert torch.equal(tiny.output(second, inputs), before)
        second.load_adapter(tmp_path, "other")
        second.set_adapter("other")
        assert torch.equal(tiny.output(second, inputs), tiny.output(first, inputs))
        assert torch.equal(tiny.output(PeftModel.from_pretrained(model, tmp_path), inputs), tiny.output(first, inputs))


def test_damaged_file_over_a_live_adapter(saved: Path) -> None:
    model, inputs = tiny.build("bert")
    peft_model = PeftModel.from_pretrained(model, saved)
    with torch.no_grad():
        before = tiny.output(peft_model, inputs)
        (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-1])
        with pytest.raises(AdapterFileError, match=rf"{WEIGHTS} must be a complete safetensors file"):
            load_coeff(peft_model, saved, "default")
        with pytest.raises(SafetensorError):
            peft_model.load_adapter(saved, "default")
        assert torch.equal(tiny.output(peft_model, inputs), before)


def test_damaged_files_in_a_combination_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    model, inputs = tiny.build("bert")
    lora = LoraConfig(target_modules=["query"], init_lora_weights=False)
    combination = add_coeff(get_peft_model(model, lora), CoeffConfig())
    combination.save_pretrained(tmp_path)
    tiny.randomise(combination.eval())
    with torch.no_grad():
        before = tiny.output(combination, inputs)
        for file in (tmp_path / WEIGHTS, tmp_path / "coeff" / WEIGHTS, tmp_path / "coeff" / "adapter_config.json"):
            whole = file.read_bytes()
            file.write_bytes(whole[:-2])
            for folder, name in ((tmp_path, "default"), (file.parent, "coeff")):
                with pytest.raises(AdapterFileError, match=str(file)):
                    combination.load_adapter(folder, name)
            assert torch.equal(tiny.output(combination, inputs), before)
            file.write_bytes(whole)
        combination.load_adapter(tmp_path, "default")
        assert not torch.equal(tiny.output(combination, inputs), before)


def test_damaged_config_is_named(saved: Path) -> None:
    file = saved / "adapter_config.json"
    file.write_text(file.read_text()[:-9])
    for load in (CoeffConfig.from_pretrained, lambda folder: load_coeff(bert(), folder)):
        with pytest.raises(AdapterFileError, match=f"{file} must be a JSON object"):
            load(saved)


@pytest.mark.parametrize("limit", [100, 400], ids=["weights-do-not-fit", "config-does-not-fit"])
def test_full_disk_while_saving_keeps_the_earlier_adapter(saved: Path, limit: int) -> None:
    model, inputs = tiny.build("bert")
    with torch.no_grad():
        before = tiny.output(PeftModel.from_pretrained(model, saved), inputs)
    (saved / "README.md").unlink()  # PEFT writes a fresh model card first, which would hit the limit before us
    # A limit on the size of a file fails a write as a full disk does, half way through.
    code = f"""
import resource
import coeff_tuning
from peft import PeftModel
from tests import tiny
model = PeftModel.from_pretrained(tiny.build("bert")[0], {str(saved)!r})
model.create_or_update_model_card = lambda folder: None
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
model.save_pretrained({str(saved)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    model, _ = tiny.build("bert")
    with torch.no_grad():
        assert torch.equal(tiny.output(PeftModel.from_pretrained(model, saved), inputs), before)
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", WEIGHTS]
