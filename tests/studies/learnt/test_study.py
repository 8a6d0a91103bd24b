from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf
import yaml

from coeff_tuning import CoeffConfig, cli
from coeff_tuning.studies import rows
from coeff_tuning.studies.learnt import report, study
from coeff_tuning.tuner.checks import coeff_layers

HEADS, LAYERS = 4, 2  # of the tiny models
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def test_study_on_images_and_texts(
    dinov2: Path, bert: Path, colours: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"max_eval_samples": 8, "num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True}
    tasks: dict[str, dict[str, Any]] = {
        "shapes": {"task": "image-classification", "model_name_or_path": str(dinov2), "dataset": "shapes"},
        "words": {"task": "text-classification", "model_name_or_path": str(bert), "train_file": str(reviews)},
    }
    for name, flags in tasks.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**shared, **flags, "train_samples_per_class": 4}))
    out = tmp_path / "out"
    settings = ",".join(str(tmp_path / f"{name}.yaml") for name in tasks)
    command = ["study", "learnt", "--settings", settings, "--data", f"shapes={colours}", "--output_dir", str(out)]
    assert cli.main([*command, "--seeds", "0,1"]) == 0
    stored = rows.read(out / "rows.jsonl", "learnt")
    assert [(row["setting"], row["seed"]) for row in stored] == [(name, seed) for name in tasks for seed in (0, 1)]
    for row in stored:
        assert len(row["layers"]) == LAYERS
        assert set(row["accuracy_with"]) == set(study.PARTS)
        for layer in row["layers"]:
            assert np.array(layer["delta"]).shape == (HEADS, HEADS)
            assert np.abs(layer["delta"]).max() > 0  # it was trained, and changed back after its parts were measured
            assert layer["min"] < layer["max"]
            assert layer["entries"] > 0
    page = (out / "summary.md").read_text()
    assert page.count("| layer 1 |") >= len(tasks)
    assert (out / "learnt.png").read_bytes()[:4] == b"\x89PNG"
    before = (out / "rows.jsonl").read_bytes()
    assert cli.main([*command, "--seeds", "0,1"]) == 0
    assert (out / "rows.jsonl").read_bytes() == before
    assert cli.main([*command, "--seeds", "0"]) == 2
    assert "at least two" in capsys.readouterr().err


@pytest.mark.parametrize("signed", [False, True])
def test_ranges_are_those_of_the_mixed_maps(signed: bool) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 8}
    model = peft.get_peft_model(tf.BertModel(tf.BertConfig(vocab_size=11, **sizes)).eval(), CoeffConfig()).eval()
    layers = [layer for _, layer in coeff_layers(model)]
    with torch.no_grad():
        for layer in layers if signed else []:
            layer.coeff_delta["default"].normal_(std=0.7)
            layer.coeff_delta["default"][1] = -1.5  # more than the identity: the maps of this head are below 0
    batches = [{"input_ids": torch.randint(11, (1, length))} for length in (3, 7)]
    found = study.ranges_of_maps(model, batches)
    assert model.get_base_model().config._attn_implementation == "sdpa"
    plain = [_maps(model, batch) for batch in batches]
    for index, own in enumerate(found):
        coeff = layers[index].coeff_in_eval()
        entries = torch.cat([torch.einsum("hg,bgls->bhls", coeff, maps[index]).flatten() for maps in plain])
        if index == 0:  # maps of later layers see other inputs when earlier layers are mixed
            assert own["min"] == pytest.approx(float(entries.min()), abs=1e-6)
            assert own["max"] == pytest.approx(float(entries.max()), abs=1e-6)
            assert own["below"] == pytest.approx(float((entries < -1e-6).float().mean()))
            assert own["above"] == pytest.approx(float((entries > 1 + 1e-6).float().mean()))
        assert own["entries"] == HEADS * (3**2 + 7**2)
        assert (own["below"] > 0) == signed
    assert signed or max(own["max"] for own in found) <= 1 + 1e-6


def _maps(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Maps of every layer without coefficients, from transformers' own eager attention."""
    base = model.get_base_model()
    base.set_attn_implementation("eager")
    with torch.no_grad(), model.disable_adapter():
        maps = base(**batch, output_attentions=True).attentions
    base.set_attn_implementation("sdpa")
    return list(maps)


def made(seed: int, matrix: list[list[float]], **seen: float) -> rows.Row:
    layer = {"layer": "layer 0", "delta": matrix, "min": -0.5, "max": 1.5, "below": 0.25, "above": 0.125, **seen}
    row = {"setting": "pictures", "seed": seed, "accuracy": 0.5 + seed / 10}
    return {**row, "accuracy_with": {"diagonal": 0.5, "none": 0.25}, "layers": [layer]}


def test_tables_by_hand() -> None:
    found = [made(0, [[0.0, 2.0], [0.0, 0.0]]), made(1, [[0.0, 1.0], [1.0, 0.0]], max=2.0, below=0.75)]
    header, lines = report.layers(found, "pictures")
    cells = dict(zip(header, lines[0], strict=True))
    assert cells["size"] == "0.866"  # sqrt((4 + 1 + 1) / 8)
    assert cells["off diagonal"] == "100 % (50 %)"
    assert cells["rows"] == "50 % (50 %)"
    assert cells["singular values"] == "1.50, 0.500"
    assert cells["effective rank"].startswith("1.5 (")
    assert cells["row sums"] == "+0.00 to +2.00"
    assert (cells["below 0"], cells["above 1"], cells["entries"]) == ("50.0 %", "12.50 %", "-0.50 to 2.00")
    assert report.strongest(found)[1][0] == ["pictures", "layer 0", "0", "1", "+1.500 (2/2)"]
    assert report.strongest(found)[1][1] == ["pictures", "layer 0", "1", "0", "+0.500 (1/2)"]
    assert report.parts(found)[1] == [["pictures", "55.00 ± 7.07 (2)", "50.00 ± 0.00 (2)", "25.00 ± 0.00 (2)"]]
    assert report.agreement([made(s, [[1.0, 2.0], [0.5, -1.0]]) for s in (0, 1)])[1][0][1].startswith("+1.00 (")
