"""Cases of `bench model` on tiny models: what is checked and stored, not how fast it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from coeff_tuning import CoeffLayer, cli
from coeff_tuning.bench import model as bench_model
from coeff_tuning.bench import serving, training
from coeff_tuning.bench.rows import read

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


def tiny_bert_config() -> tf.BertConfig:
    return tf.BertConfig(**SIZES, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def tiny_vit() -> tf.ViTForImageClassification:
    return tf.ViTForImageClassification(tf.ViTConfig(**SIZES, image_size=32, num_labels=3))


def tiny_llama() -> tf.LlamaForCausalLM:
    config = tf.LlamaConfig(**SIZES, vocab_size=49152, num_key_value_heads=1, tie_word_embeddings=True)
    config.update({"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0})
    return tf.LlamaForCausalLM(config)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    builders = {
        "minilm": lambda: tf.BertForSequenceClassification(tiny_bert_config()),
        "smollm2": tiny_llama,
        "smollm2-checkpointing": tiny_llama,
    }
    for name, build in builders.items():
        case = dataclasses.replace(training.CASES[name], build=build)
        small = dataclasses.replace(case, batch=lambda small, case=case: case.batch(True))
        monkeypatch.setitem(training.CASES, name, small)
    monkeypatch.setattr(serving, "minilm_config", tiny_bert_config)
    monkeypatch.setattr(serving, "smollm2", tiny_llama)
    monkeypatch.setattr(serving, "ADAPTERS", 5)
    monkeypatch.setattr(serving.loading, "__defaults__", (tiny_vit,))


def bench(cases: list[str], output: Path) -> list[dict[str, Any]]:
    argv = ["bench", "model", "--cases", *cases, "--repeats", "2", "--time-only", "--output", str(output)]
    assert cli.main(argv) == 0
    return read(output)


@pytest.mark.parametrize("case", ["minilm", "smollm2", "smollm2-checkpointing"])
def test_training_rows(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench([case], tmp_path / "rows.json")
    assert [row["variant"] for row in rows] == ["coeff", "lora", "head"]
    for row in rows:
        assert row["status"] == "ok"
        assert row["median_ms"] > 0
        assert row["rounds"] == 2
        assert row["versions"]["peft"]
        assert row["backends"] == [name for name in row["backends"] if name != "sdpa"] != []
    coefficients, head = 2 * 3 * 3, 5 * 24 + 5
    with_head = case == "minilm"
    assert rows[0]["trainable"] == coefficients + with_head * head
    assert rows[1]["trainable"] > rows[0]["trainable"]
    assert rows[2]["trainable"] == (head if with_head else 24)
    figures = {entry["what"]: entry["at_most"] for entry in rows[0]["figures"]}
    assert figures == {"time / LoRA": 0.95, "time / head alone": None}
    assert "time / LoRA" in capsys.readouterr().out


def test_peak_memory_is_compared_with_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"coeff": 3.0, "lora": 4.0, "head": 2.0}
    monkeypatch.setattr(bench_model, "peak_in_child", lambda prepare, case, variant: (peaks[variant], ""))
    rows = bench_model._run_training(training.CASES["minilm"], 1, memory=True)
    assert [row["peak_above_model_mib"] for row in rows] == [3.0, 4.0, 2.0]
    entry = rows[0]["figures"][-1]
    assert entry == {"what": "peak memory / LoRA", "value": 0.75, "at_most": 1.0, "met": True}


def test_memory_of_a_step_is_prepared_with_the_same_step() -> None:
    work, device = training.prepare_memory("minilm", "coeff")
    assert device == "cpu"
    work()


@pytest.mark.parametrize("case", ["minilm", "smollm2"])
def test_head_alone_is_after_a_full_backward(case: str) -> None:
    model = training.prepare(training.CASES[case], "head")
    reached: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, args: Any, out: torch.Tensor) -> None:
        out.register_hook(reached.append)

    model.get_input_embeddings().register_forward_hook(watch)
    training.make_step(training.CASES[case], model)()
    assert len(reached) == 1
    assert reached[0][:, :-1].abs().min() > 0  # the last token of a text predicts nothing
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(training.CASES[case].head in name for name in trained)


def test_step_trains() -> None:
    case = training.CASES["minilm"]
    model = training.prepare(case, "coeff")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training.make_step(case, model)()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if "coeff_delta" in name}
    assert all("coeff_delta" in name or "classifier" in name for name in moved)


def test_gate_sees_coefficients_that_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = training.CASES["minilm"]
    model = training.prepare(case, "coeff")
    assert training.problem_with(model, case.batch(True)) == ""
    assert model.training
    monkeypatch.setattr(CoeffLayer, "coeff", lambda self: torch.eye(3))
    assert "coefficients must change the output; it changes by 0.0" in training.problem_with(model, case.batch(True))
    rows = bench_model._run_training(case, 1, memory=False)
    assert [(row["variant"], row["status"]) for row in rows] == [("coeff", "wrong")]


def test_gate_sees_a_coefficient_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    case = training.CASES["minilm"]
    model = training.prepare(case, "coeff")
    former = CoeffLayer.coeff

    def first_row_alone(self: CoeffLayer) -> torch.Tensor:
        coeff = former(self)
        return torch.cat([coeff[:1], coeff[1:].detach()])

    monkeypatch.setattr(CoeffLayer, "coeff", first_row_alone)
    assert "every coefficient must get a gradient; those of" in training.problem_with(model, case.batch(True))


def test_serving_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {(row["case"], row["variant"]): row for row in bench(["generate", "many", "load"], tmp_path / "rows.jsonl")}
    assert [row["status"] for row in rows.values()] == ["ok"] * 6
    assert rows["generate", "coeff"]["tokens_per_s"] == pytest.approx(
        64e3 / rows["generate", "coeff"]["median_ms"], abs=0.1
    )
    assert rows["generate", "coeff"]["figures"][0]["at_most"] == pytest.approx(1 / 0.9, abs=1e-4)
    assert rows["many", "one adapter"]["trainable"] == 18
    assert rows["many", "5 adapters"]["trainable"] == 90
    assert rows["many", "5 adapters"]["figures"][0]["at_most"] == 1.10
    assert rows["load", serving.NEW]["figures"][0]["at_most"] == 50.0
    recompilations = rows["load", serving.SWAP]["figures"][1]
    assert recompilations == {"what": "recompilations", "value": 0, "at_most": 0, "met": True}
    assert "tok/s" in capsys.readouterr().out


def test_swap_that_is_not_seen_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving._saved_adapters(tiny_vit) as (model, folders):
        graphs, problem = serving._swap_compiled(model, [folders[0], folders[0]])
    assert graphs == 0
    assert "its output did not change" in problem


def test_adapters_that_are_mixed_up_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    former = CoeffLayer._coeff_per_sample
    monkeypatch.setattr(CoeffLayer, "_coeff_per_sample", lambda self, names: former(self, list(names)[::-1]))
    assert "must come out as under its adapter alone; it is off by" in serving.many_adapters().problem


def test_unknown_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "model", "--cases", "gpt"]) == 2
    assert "cases must be some of vit, minilm, smollm2, smollm2-checkpointing, generate, many, load; got gpt" in (
        capsys.readouterr().err
    )
