"""Concept customization on a tiny random pipeline: it learns, survives a kill, and draws the same after loading."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from coeff_tuning import CoeffConfig, load_coeff
from tests.examples.pipelines import SDXL_UNET, SIZE, make_photographs, make_pipeline, text_config, tokenizer

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
FOLDER = Path(__file__).parents[2] / "examples" / "customize"
NAMES = ("adapters", "images", "training", "train", "scores", "evaluate")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The example's modules, importable by name as when one of them is run."""
    import importlib

    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def train(scripts: dict[str, ModuleType]) -> Any:
    return scripts["train"].main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("pipelines") / "sdxl")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("data") / "photographs")


def flags(base: Path, photographs: Path, output: Path, *more: str) -> list[str]:
    given = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": photographs,
        "instance_prompt": "a photo of sks dog",
        "resolution": SIZE,
        "output_dir": output,
        "gradient_accumulation_steps": 2,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))] + list(more)


def drawn(scripts: dict[str, ModuleType], pipe: Any) -> torch.Tensor:
    made = pipe("a photo of sks dog", height=SIZE, width=SIZE, num_inference_steps=3, output_type="pt",
                generator=torch.Generator().manual_seed(1))  # fmt: skip
    return made.images


def losses(run: Path) -> list[float]:
    return json.loads((run / "metrics.json").read_text())["losses"]


@pytest.fixture(scope="module")
def trained(train: Any, base: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA and coefficients, with prior preservation."""
    run = tmp_path_factory.mktemp("runs") / "both"
    prior = ["--class_prompt", "a photo of dog", "--class_data_dir", str(run.parent / "class")]
    prior += ["--num_class_images", "3", "--class_inference_steps", "2"]
    rates = ["--learning_rate", "1e-2", "--coeff_learning_rate", "1e-1", "--max_train_steps", "6"]
    assert train(flags(base, photographs, run, *prior, *rates)) == 0
    return run


def test_sdxl_has_fifty_thousand_coefficients() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
        assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684  # that of the published weights
        model = get_peft_model(unet, CoeffConfig())
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    assert len(shapes) == 140
    assert sum(shape.numel() for shape in shapes) == 50_000


@pytest.mark.parametrize("method", ["coeff", "lora", "coeff+lora"])
def test_starts_at_the_base_model(scripts: dict[str, ModuleType], base: Path, method: str) -> None:
    pipe = scripts["adapters"].load_pipeline(str(base), torch.float32)
    before = drawn(scripts, pipe)
    model = scripts["adapters"].attach(pipe.unet, method, 2, 0.0)
    assert torch.equal(drawn(scripts, pipe), before)
    names = {name.partition(".transformer_blocks.")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert any("coeff_delta" in name and "attn1" in name for name in names) == ("coeff" in method)
    assert any("coeff_delta" in name and "attn2" in name for name in names) == ("coeff" in method)
    assert any("lora_A" in name for name in names) == ("lora" in method)


@pytest.mark.parametrize(("kind", "method"), [("sdxl", "coeff"), ("sd15", "coeff+lora")])
def test_loss_falls(train: Any, base: Path, photographs: Path, tmp_path: Path, kind: str, method: str) -> None:
    base = base if kind == "sdxl" else make_pipeline(tmp_path / "sd15", is_xl=False)
    more = ["--method", method, "--max_train_steps", "24", "--gradient_accumulation_steps", "1"]
    more += ["--train_batch_size", "4", "--coeff_dropout", "0"]
    found = []
    for rate in ("0", "1e-1"):  # the same images, noise and steps in both
        rates = ["--coeff_learning_rate", rate, "--learning_rate", rate]
        assert train(flags(base, photographs, tmp_path / rate, *more, *rates)) == 0
        found.append(losses(tmp_path / rate))
    still, learned = found
    assert still[0] == learned[0]
    # A random UNet cannot learn to find noise: what falls is its distance to the 1.0 of predicting nothing.
    assert all(ours < former for ours, former in zip(learned[-8:], still[-8:], strict=True))
    assert sum(learned[-8:]) - 8 < 0.9 * (sum(still[-8:]) - 8)


def test_killed_run_goes_on_and_ends_the_same(
    train: Any, base: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max_train_steps", "12", "--checkpointing_steps", "2"]
    assert train(flags(base, photographs, tmp_path / "whole", *more)) == 0
    killed = tmp_path / "killed"
    command = [sys.executable, str(FOLDER / "train.py"), *flags(base, photographs, killed, *more)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not list(killed.glob("checkpoint-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error.decode()
    assert not (killed / "metrics.json").exists()
    done = max(int(path.name.partition("-")[2]) for path in killed.glob("checkpoint-*"))
    assert 2 <= done < 12
    capsys.readouterr()
    assert train(flags(base, photographs, killed, *more)) == 0
    assert f"going on after step {done}" in capsys.readouterr().out
    assert losses(killed) == losses(tmp_path / "whole")
    for name in ("adapter_model.safetensors", "coeff/adapter_model.safetensors"):
        ours, whole = load_file(killed / name), load_file(tmp_path / "whole" / name)
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[key], whole[key]) for key in whole)
    assert not list(killed.glob("checkpoint-*"))


def test_finished_run_is_not_repeated(
    train: Any, base: Path, trained: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    prior = ["--class_prompt", "a photo of dog", "--class_data_dir", str(trained.parent / "class")]
    prior += ["--num_class_images", "3", "--class_inference_steps", "2"]
    rates = ["--learning_rate", "1e-2", "--coeff_learning_rate", "1e-1", "--max_train_steps", "6"]
    assert train(flags(base, photographs, trained, *prior, *rates)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == times
    assert train(flags(base, photographs, trained, *prior, *rates, "--lora_r", "5")) == 2
    assert "lora_r was 4 and is now 5" in capsys.readouterr().err


def test_class_images_are_drawn_once(trained: Path, scripts: dict[str, ModuleType], base: Path) -> None:
    folder = trained.parent / "class"
    names = ["class-0000.png", "class-0001.png", "class-0002.png"]
    assert sorted(os.listdir(folder)) == names
    first = (folder / names[1]).read_bytes()
    (folder / names[1]).unlink()
    pipe = scripts["adapters"].load_pipeline(str(base), torch.float32)
    scripts["images"].complete(pipe, folder, "a photo of dog", 3, SIZE, 2, 0)
    assert sorted(os.listdir(folder)) == names
    assert (folder / names[1]).read_bytes() == first


def test_finished_run_loads_through_the_pipeline(scripts: dict[str, ModuleType], base: Path, trained: Path) -> None:
    adapters = scripts["adapters"]
    pipe = adapters.load_pipeline(str(base), torch.float32)
    before = drawn(scripts, pipe)
    adapters.load(pipe.unet, trained, "coeff+lora")
    expected = drawn(scripts, pipe)
    assert (expected - before).abs().max() > 1e-4
    pipe = adapters.load_pipeline(str(base), torch.float32)
    pipe.load_lora_weights(str(trained), weight_name="pytorch_lora_weights.safetensors")
    assert not torch.equal(drawn(scripts, pipe), expected)
    load_coeff(pipe.unet, trained / "coeff")
    assert torch.equal(drawn(scripts, pipe), expected)


def test_saved_run_draws_the_same_images(
    scripts: dict[str, ModuleType], train: Any, base: Path, photographs: Path, tmp_path: Path
) -> None:
    adapters = scripts["adapters"]
    for method in adapters.METHODS:
        pipe = adapters.load_pipeline(str(base), torch.float32)
        before = drawn(scripts, pipe)
        model = adapters.attach(pipe.unet, method, 2, 0.0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        trained = drawn(scripts, pipe)
        assert (trained - before).abs().max() > 1e-2
        model.save_pretrained(str(tmp_path / method))
        pipe = adapters.load_pipeline(str(base), torch.float32)
        model = adapters.load(pipe.unet, tmp_path / method, method)
        assert torch.equal(drawn(scripts, pipe), trained)
        with model.disable_adapter():
            assert torch.equal(drawn(scripts, pipe), before)


def test_errors_say_what_to_do(
    train: Any, base: Path, trained: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*more: str, folder: Path = photographs, pipeline: Path = base, output: Path = tmp_path / "run") -> str:
        assert train(flags(pipeline, folder, output, *more)) == 2
        return capsys.readouterr().err

    broken, empty = tmp_path / "broken", tmp_path / "empty"
    shutil.copytree(photographs, broken)
    (broken / "2.png").write_bytes((photographs / "2.png").read_bytes()[:900])
    empty.mkdir()
    assert f"{broken / '2.png'} cannot be read" in error(folder=broken)
    assert f"{empty} holds no image" in error(folder=empty)
    assert "no such folder" in error(folder=tmp_path / "nowhere")
    assert "--instance_prompt is empty" in error("--instance_prompt", " ")
    assert "--class_prompt is missing" in error("--class_data_dir", str(empty))
    assert "--class_data_dir is missing" in error("--class_prompt", "a dog")
    assert "multiple of 8; got 33" in error("--resolution", "33")
    assert f"the pipeline {empty} cannot be loaded" in error(pipeline=empty)
    assert not (tmp_path / "run").exists()
    other = shutil.copytree(base, tmp_path / "other")
    message = error(pipeline=other, output=trained)
    assert f"pretrained_model_name_or_path was '{base}' and is now '{other}'" in message
    assert "holds files that are not a run's" in error(output=photographs)


def make_judges(folder: Path) -> tuple[Path, Path]:
    """A random ViT and a random CLIP with their processors."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    dino, clip = folder / "dino", folder / "clip"
    ViTModel(ViTConfig(image_size=SIZE, patch_size=8, **sizes)).save_pretrained(dino)
    vision = {"image_size": SIZE, "patch_size": 8, **sizes}
    CLIPModel(CLIPConfig(text_config=text_config().to_dict(), vision_config=vision)).save_pretrained(clip)
    tokenizer().save_pretrained(clip)
    for judge in (dino, clip):
        processor.save_pretrained(judge)
    return dino, clip


def test_evaluation(
    scripts: dict[str, ModuleType], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    dino, clip = make_judges(tmp_path)
    more = ["--images_per_prompt", "1", "--num_inference_steps", "2", "--unrelated_prompts", "a car"]
    evaluate = scripts["evaluate"].main
    assert evaluate([str(run), *more, "--dino_model", str(dino), "--clip_model", str(clip)]) == 0
    found = json.loads((run / "evaluation" / "scores.json").read_text())["scores"]
    kinds = {"dino_concept_alignment", "clip_concept_alignment", "clip_text_alignment"}
    assert found.keys() == {f"{kind}_{which}" for kind in kinds for which in ("base", "tuned")} | {
        "dino_drift", "clip_drift", "pixel_drift"
    }  # fmt: skip
    assert all(-1 <= value <= 1 for value in found.values())
    assert found["pixel_drift"] > 1e-3
    assert found["dino_concept_alignment_base"] != found["dino_concept_alignment_tuned"]
    assert (run / "evaluation" / "sheet.png").stat().st_size > 10_000
    assert len(list((run / "evaluation" / "tuned").iterdir())) == 5
    capsys.readouterr()
    one = ["--prompts", "a photo of sks dog"]
    assert evaluate([str(run), *more, *one, "--dino_model", str(tmp_path / "no"), "--clip_model", str(clip)]) == 0
    assert f"dino: not measured: {tmp_path / 'no'} cannot be loaded" in capsys.readouterr().out
    assert evaluate([str(tmp_path / "nowhere")]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert evaluate([str(run), "--prompts", ""]) == 2
    assert "empty prompt" in capsys.readouterr().err
    (run / "config.yaml").write_text("task: text-classification\n")
    assert evaluate([str(run)]) == 2
    assert "must be one of customize/train.py" in capsys.readouterr().err


def test_scores_of_known_images(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    from PIL import Image

    scores = scripts["scores"]
    dino, _ = make_judges(tmp_path)
    photographs = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    same = {"subject": photographs[:1], "other": photographs[1:]}
    changed = {**same, "other": photographs[:1]}
    drawn = {"base": same, "tuned": changed}
    found = scores.measure(scores.Dino, str(dino), photographs[:1], drawn, ["subject"], ["other"])
    assert found["dino_concept_alignment_base"] == pytest.approx(1, abs=1e-5)
    features = scores.Dino(str(dino)).images(photographs)
    assert found["dino_drift"] == pytest.approx(float(1 - features[0] @ features[1]), abs=1e-5)
    assert found["dino_drift"] > 1e-4
    assert scripts["evaluate"].pixel_drift(drawn, ["other"]) == pytest.approx(2 / 3)
