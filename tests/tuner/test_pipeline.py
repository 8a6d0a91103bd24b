"""LoRA that a diffusers pipeline loads itself, and coefficients, in either order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, load_coeff
from coeff_tuning.errors import CombinationError, MergeError
from tests.examples import pipelines

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
]


def load(folder: Path) -> Any:
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **kwargs: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    size = {"height": pipelines.SIZE, "width": pipelines.SIZE}
    return pipe("a dog", num_inference_steps=2, output_type="np", generator=generator, **size, **kwargs).images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pipeline, files of LoRA as diffusers writes them, files of coefficients, and the images of each."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipelines.make_pipeline(folder / "sdxl")
    pipe = load(folder / "sdxl")
    images = {"base": draw(pipe)}
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    model = get_peft_model(pipe.unet, config).eval()
    images["lora"] = draw(pipe)
    layers = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(model).items()}
    diffusers.StableDiffusionXLPipeline.save_lora_weights(folder / "lora", unet_lora_layers=layers)
    add_coeff(model, CoeffConfig()).eval()
    for name, parameter in model.named_parameters():
        if "coeff_delta" in name:
            parameter.data.normal_(std=0.5)
    images["both"] = draw(pipe)
    model.save_pretrained(folder)
    pipe = load(folder / "sdxl")
    load_coeff(pipe.unet, folder / "coeff")
    images["coeff"] = draw(pipe)
    pairs = [("base", "lora"), ("lora", "both"), ("coeff", "both"), ("base", "coeff")]
    assert all(np.abs(images[a] - images[b]).max() > 1e-3 for a, b in pairs)
    return {"folder": folder, **images}


def load_lora(pipe: Any, made: dict[str, Any], adapter_name: str | None) -> None:
    name = "pytorch_lora_weights.safetensors"  # diffusers wants it named when it is offline
    pipe.load_lora_weights(str(made["folder"] / "lora"), weight_name=name, adapter_name=adapter_name)


def both(made: dict[str, Any], first: str) -> tuple[Any, Any]:
    pipe = load(made["folder"] / "sdxl")
    if first == "lora":
        load_lora(pipe, made, "style")
    model = load_coeff(pipe.unet, made["folder"] / "coeff", "dog")
    if first == "coeff":
        pipe.load_lora_weights(
            str(made["folder"] / "lora"), weight_name="pytorch_lora_weights.safetensors"
        )  # a name of diffusers' own choice
    return pipe, model


@pytest.mark.parametrize("first", ["lora", "coeff"])
def test_pipeline_draws_with_both(made: dict[str, Any], first: str) -> None:
    pipe, model = both(made, first)
    np.testing.assert_array_equal(draw(pipe), made["both"])
    with model.disable_adapter():
        np.testing.assert_array_equal(draw(pipe), made["base"])
    np.testing.assert_array_equal(draw(pipe), made["both"])


@pytest.mark.parametrize("first", ["lora", "coeff"])
def test_lora_taken_off_and_loaded_again(made: dict[str, Any], first: str) -> None:
    pipe, _ = both(made, first)
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe), made["coeff"])
    load_lora(pipe, made, "again")
    np.testing.assert_array_equal(draw(pipe), made["both"])
    pipe.delete_adapters("again")
    np.testing.assert_array_equal(draw(pipe), made["coeff"])


def test_fused_lora_leaves_the_coefficients(made: dict[str, Any]) -> None:
    pipe, _ = both(made, "lora")
    pipe.fuse_lora()
    np.testing.assert_allclose(draw(pipe), made["both"], atol=1e-5)
    pipe.unload_lora_weights()
    np.testing.assert_allclose(draw(pipe), made["both"], atol=1e-5)


@pytest.mark.parametrize("first", ["lora", "coeff"])
def test_the_pipeline_chooses_and_weighs_adapters(made: dict[str, Any], first: str) -> None:
    pipe, _ = both(made, first)
    (lora,) = set(pipe.unet.peft_config) - {"dog"}
    for names, weights, expected in [
        ([lora], [1.0], "lora"),
        (["dog"], [1.0], "coeff"),
        ([lora, "dog"], [1.0, 0.0], "lora"),
        ([lora, "dog"], [0.0, 1.0], "coeff"),
        ([lora, "dog"], [1.0, 1.0], "both"),
    ]:
        pipe.set_adapters(names, weights)
        np.testing.assert_allclose(draw(pipe), made[expected], atol=1e-5, err_msg=f"{names} {weights}")
    halved = draw(pipe, cross_attention_kwargs={"scale": 0.5})
    assert np.abs(halved - made["both"]).max() > 1e-3
    np.testing.assert_allclose(draw(pipe), made["both"], atol=1e-5)  # as it was


def test_training_beside_the_lora_of_a_pipeline(made: dict[str, Any], tmp_path: Path) -> None:
    pipe = load(made["folder"] / "sdxl")
    load_lora(pipe, made, "style")
    model = get_peft_model(pipe.unet, CoeffConfig())
    assert all("coeff_delta" in name for name, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path]  # not the pipeline's
    with pytest.raises(MergeError, match="style"):
        model.merge_and_unload()
    unet = model.unload()
    assert list(unet.peft_config) == ["style"]
    np.testing.assert_array_equal(draw(pipe), made["lora"])
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe), made["base"])


def test_peft_models_are_not_stacked(made: dict[str, Any]) -> None:
    _, model = both(made, "lora")
    with pytest.raises(CombinationError, match="stacked PeftModels"):
        get_peft_model(model, CoeffConfig())


@pytest.mark.parametrize("parameterization", ["residual", "direct"])
@pytest.mark.parametrize("is_mixed_batch", [False, True])
def test_scale_weighs_the_difference_from_the_identity(parameterization: str, is_mixed_batch: bool) -> None:
    layer = CoeffLayer(5)
    layer.update_layer("a", CoeffConfig(parameterization=parameterization, init="random", init_scale=0.7))
    layer.eval().set_adapter(["a"])
    trained = layer.coeff_in_eval()

    def coeff() -> torch.Tensor:
        if not is_mixed_batch:
            return layer.coeff()
        layer.set_samples(["a"])
        (matrix,) = layer.coeff()
        layer.set_samples(None)
        return matrix

    layer.set_scale("unknown", 7.0)
    torch.testing.assert_close(coeff(), trained, rtol=0, atol=0)
    layer.set_scale("a", -0.3)
    torch.testing.assert_close(coeff(), torch.eye(5) - 0.3 * (trained - torch.eye(5)))
    layer.scale_layer(2.0)
    torch.testing.assert_close(coeff(), torch.eye(5) - 0.6 * (trained - torch.eye(5)))
    layer.unscale_layer(2.0)
    torch.testing.assert_close(coeff(), torch.eye(5) - 0.3 * (trained - torch.eye(5)))
    layer.unscale_layer()
    torch.testing.assert_close(coeff(), trained)


def test_lora_of_peft_after_coefficients_is_refused_before_a_save_loses_them(
    made: dict[str, Any], tmp_path: Path
) -> None:
    unet = load(made["folder"] / "sdxl").unet
    model = get_peft_model(get_peft_model(unet, CoeffConfig()), LoraConfig(target_modules=["to_q"]))
    with pytest.raises(CombinationError, match="Coefficients must be attached after the other PEFT method"):
        model.save_pretrained(tmp_path)
