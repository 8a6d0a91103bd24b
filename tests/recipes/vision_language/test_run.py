from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf

from coeff_tuning import CoeffConfig, CoeffLayer, cli
from coeff_tuning.errors import CoeffTuningError, RunError
from coeff_tuning.recipes.trainer import coeff_parameters, lora_parameters
from coeff_tuning.recipes.vision_language import command, readers, training
from coeff_tuning.recipes.vision_language.data import Collator
from coeff_tuning.recipes.vision_language.model import PROJECTION, model_class
from coeff_tuning.recipes.vision_language.scoring import generate

QUICK = ["--per_device_train_batch_size", "2", "--num_train_epochs", "1", "--use_cpu", "true", "--disable_tqdm", "true"]
BEAMS = {"num_beams": 2, "max_new_tokens": 4}
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def argv(data: Path, model: Path, folder: Path, *flags: str) -> list[str]:
    where = ["--data", str(data), "--model_name_or_path", str(model), "--output_dir", str(folder)]
    return [*where, *QUICK, "--num_beams", "2", "--text_length", "12", *flags]


def run(*arguments: Any) -> dict[str, Any]:
    return command.train(command.parse(argv(*arguments)))


@pytest.fixture(params=["bart", "decoder"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def texts(folder: Path, data: Path) -> list[str]:
    model, tokenizer = training.load(folder)
    is_encoder_decoder = model.config.is_encoder_decoder
    collator = Collator(tokenizer, 12, is_encoder_decoder=is_encoder_decoder)
    items = [item for task in readers.TASKS for item in readers.read(data, task, "val")]
    return [text for item in items for text in generate(model, collator, [item], 1, BEAMS)]


@pytest.mark.parametrize("method", ["linear", "coeff", "lora", "coeff+lora", "coeff+dora"])
def test_all_formats_end_to_end(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics = run(data, model, folder, "--method", method, "--coeff_learning_rate", "0.5", "--learning_rate", "0.05")
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["mean"] == pytest.approx(sum(metrics[task] for task in readers.TASKS) / 4)
    assert (metrics["train_samples"], metrics["heldout_samples"]) == (5 + 5 + 5 + 3, 5 + 5 + 5 + 2)
    assert metrics["projection_parameters"] == 6 * 16 + 16 + 2 * 16
    has_three = model.name.startswith("bart")  # encoder, decoder, cross; else two layers of a decoder
    coeff = 3 * 2 * 2 if has_three else 2 * 4 * 4
    assert (
        metrics["extra_parameters"] - (coeff if "coeff" in method else 0)
        == {
            "linear": 0,
            "coeff": 0,
            "lora": 3 * 2 * 2 * 8 * 16 if has_three else 2 * (2 * 8 * 16 + 8 * 16 + 8 * 8),
            "coeff+lora": 3 * 2 * 2 * 8 * 16 if has_three else 2 * (2 * 8 * 16 + 8 * 16 + 8 * 8),
            "coeff+dora": 3 * 2 * (2 * 8 * 16 + 16) if has_three else 2 * (2 * 8 * 16 + 16 + 8 * 16 + 8 * 8 + 8),
        }[method]
    )


def test_a_run_loads_as_it_was(model: Path, data: Path, tmp_path: Path) -> None:
    """Logits of the model that was trained and of the one loaded from its folder are the same numbers."""
    made = command.parse(argv(data, model, tmp_path / "run", "--method", "coeff+lora", "--coeff_learning_rate", "0.5"))
    prepared = training.prepare(made.about, made.method)
    training.make_trainer(prepared, made.method, made.training).train()
    tmp_path.joinpath("run").mkdir(exist_ok=True)
    command._save(made, prepared, {"task": "image-text", "method": "coeff+lora", "visual_width": 6})
    loaded, _ = training.load(tmp_path / "run")
    batch = prepared.collator(prepared.heldout[:3])
    with torch.no_grad():
        before, after = (m.eval()(**batch) for m in (prepared.model, loaded))
        plain = prepared.loaded.model.eval()
    assert torch.equal(before.logits, after.logits)
    assert before.loss == after.loss
    with torch.no_grad(), prepared.model.disable_adapter():
        assert not torch.allclose(plain(**batch).logits, after.logits, atol=1e-4)


def test_samples_do_not_see_one_another(model: Path, data: Path) -> None:
    """One sample alone has the loss and logits that it has beside a pair of images with a longer text."""
    loaded = training.load_language_model(str(model), 6)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(loaded.model, CoeffConfig(coeff_dropout=0.0))
    for layer in adapted.modules():
        if isinstance(layer, CoeffLayer):
            for delta in layer.adapters.values():
                torch.nn.init.normal_(delta, std=0.5)
    adapted.eval()
    collator = Collator(loaded.processor, 12, is_encoder_decoder=loaded.model.config.is_encoder_decoder)
    short, long = readers.read(data, "caption", "val")[0], readers.read(data, "nlvr", "val")[0]
    short.answers = {"red": 1.0}
    with torch.no_grad():
        alone, both = adapted(**collator([short])), adapted(**collator([short, long]))
        mean = (2 * alone.loss + 2 * adapted(**collator([long])).loss) / 4
    if loaded.model.config.is_encoder_decoder:
        assert torch.allclose(both.logits[0, :1], alone.logits[0, :1], atol=1e-6)
    else:
        assert torch.allclose(both.loss, mean, atol=1e-6)
    plain = generate(adapted, collator, [short], 1, BEAMS) + generate(adapted, collator, [long], 1, BEAMS)
    assert generate(adapted, collator, [short, long], 2, BEAMS) == plain


def test_decoder_is_trained_on_its_answers_alone(decoder: Path, data: Path) -> None:
    """The loss is that of the tokens of the answer, computed from all logits."""
    loaded = training.load_language_model(str(decoder), 6)
    collator = Collator(loaded.processor, 12, is_encoder_decoder=False)
    items = [readers.read(data, task, "val")[0] for task in ("vqa", "nlvr")]
    batch = collator(items)
    labels = batch.pop("labels")
    model = loaded.model.eval()
    with torch.no_grad():
        loss = model(**batch, labels=labels).loss
        _, _, order = model.join(batch["features"], batch["input_ids"], batch["attention_mask"])
        logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels.gather(1, order)[:, 1:].flatten(), ignore_index=-100
    )
    assert torch.allclose(loss, expected, atol=1e-6)
    kept = [row[row != -100].tolist() for row in labels]
    assert loaded.processor.batch_decode(kept) == ["red </s>", "false </s>"]


def test_every_attention_of_bart_base_gets_coefficients() -> None:
    """6 encoder, 6 decoder and 6 cross attentions of 12 heads: 2,592 numbers. Shapes only, no weights."""
    config = tf.BartConfig(
        d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12
    )
    config.visual_width = 2048
    with torch.device("meta"):
        adapted = peft.get_peft_model(
            model_class(config)(config), CoeffConfig(modules_to_save=[PROJECTION]), low_cpu_mem_usage=True
        )
    assert sum(p.numel() for p in coeff_parameters(adapted)) == 2592


def test_learning_rates(bart: Path, data: Path, tmp_path: Path) -> None:
    """Projection, coefficients and LoRA have the rate that was asked for."""
    rates = ["--learning_rate", "0.1", "--coeff_learning_rate", "0.2", "--lora_learning_rate", "0.3"]
    made = command.parse(argv(data, bart, tmp_path / "run", "--method", "coeff+lora", *rates))
    prepared = training.prepare(made.about, made.method)
    trainer = training.make_trainer(prepared, made.method, made.training)
    groups = trainer.create_optimizer().param_groups
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    projection = [p for n, p in prepared.model.named_parameters() if PROJECTION in n and p.requires_grad]
    for expected, parameters in (
        (0.1, projection),
        (0.2, coeff_parameters(prepared.model)),
        (0.3, lora_parameters(prepared.model)),
    ):
        assert parameters
        assert {found[id(p)] for p in parameters} == {expected}


def test_resumed_run_ends_as_an_uninterrupted_one(model: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--method", "coeff+lora", "--coeff_learning_rate", "0.1", "--num_train_epochs", "3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run(data, model, whole, *flags, "--save_total_limit", "5")
    broken.mkdir()
    shutil.copy(whole / "config.yaml", broken)
    shutil.copytree(min(whole.glob("checkpoint-*"), key=lambda p: int(p.name[11:])), broken / "checkpoint-9")
    settings = (broken / "config.yaml").read_text()
    with pytest.raises(RunError, match="holds an interrupted run; --resume_from_checkpoint true goes on with it"):
        run(data, model, broken, *flags, "--save_total_limit", "5")
    with pytest.raises(RunError, match=r"run with other settings: lora_r was None and is now 4"):
        run(data, model, broken, *flags, "--save_total_limit", "5", "--lora_r", "4", "--resume_from_checkpoint", "true")
    assert (broken / "config.yaml").read_text() == settings
    found = run(data, model, broken, *flags, "--save_total_limit", "5", "--resume_from_checkpoint", "true")
    assert found["resumed"]
    assert [found[task] for task in readers.TASKS] == [expected[task] for task in readers.TASKS]
    first, second = (training.load(folder)[0].state_dict() for folder in (whole, broken))
    assert first.keys() == second.keys()
    trained = [name for name in first if "original_module" not in name]  # that is new in every load
    assert all(torch.equal(first[name], second[name]) for name in trained)


def test_projection_of_an_earlier_run(model: Path, data: Path, tmp_path: Path) -> None:
    run(data, model, tmp_path / "first", "--method", "linear", "--learning_rate", "0.1")
    flags = ["--method", "coeff", "--projection", str(tmp_path / "first"), "--max_steps", "1", "--learning_rate", "0"]
    run(data, model, tmp_path / "second", *flags, "--tasks", "vqa", "nlvr")
    first, second = (training.load(tmp_path / name)[0].state_dict() for name in ("first", "second"))
    ours = next(v for k, v in second.items() if k.endswith("modules_to_save.default.0.weight"))
    assert torch.equal(first["visual_projection.0.weight"], ours)
    assert not list((tmp_path / "second").glob("caption*"))


def test_flags_that_have_no_meaning_here(
    bart: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in (
        (["--method", "full"], "--method full is not a method of vl"),
        (["--head_start", "probe"], "--head_start probe is for classifiers"),
        (["--tasks", "vqa", "sums"], "--tasks must be some of vqa, gqa, nlvr, caption; got 'sums'"),
        (["--num_beams", "0"], "--num_beams must be at least 1; got 0"),
        (["--data", ""], "--data is needed"),
        (["--fsdp"], "vl cannot be sharded"),
        (["--projection", str(tmp_path / "none")], "none holds no finished run"),
        (["--model_name_or_path", str(tmp_path)], "cannot be loaded"),
        (["--coeff_init", "ones"], "these coefficients cannot be made"),
    ):
        assert cli.main(["vl", *argv(data, bart, tmp_path / "run", *flags)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_finished_run_is_left_alone(bart: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--tasks", "vqa", "--max_steps", "1", "--max_eval_samples", "2", "--method", "coeff"]
    metrics = run(data, bart, tmp_path / "run", *flags)
    assert metrics["heldout_samples"] == 2
    with pytest.raises(CoeffTuningError, match="holds a run"):
        run(data, bart, tmp_path / "run", *flags)
    before = {p.name: os.stat(p).st_mtime_ns for p in (tmp_path / "run").iterdir()}
    (data / "vqa" / "train.json").write_text("{")
    with pytest.raises(CoeffTuningError, match=r"train\.json is not valid JSON"):
        run(data, bart, tmp_path / "run", *flags, "--overwrite_output_dir")
    assert before == {p.name: os.stat(p).st_mtime_ns for p in (tmp_path / "run").iterdir()}
