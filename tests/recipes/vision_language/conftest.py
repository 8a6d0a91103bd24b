"""Tiny random language models, and data in the four formats with features made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

CELLS, WIDTH = 5, 6
_PROMPTS = ["vqa", "gqa", "nlvr", "caption", ":", "what", "colour", "is", "it", "both", "are"]
WORDS = [*_PROMPTS, "red", "blue", "green", "true", "false", "a", "thing", "of"]


def _tokenizer(folder: Path) -> int:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", "<s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="session")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bart")
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 128}
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 3, "decoder_start_token_id": 2}
    config = tf.BartConfig(vocab_size=_tokenizer(folder), **heads, **sizes, **tokens, forced_eos_token_id=2)
    tf.BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 3}
    tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=_tokenizer(folder), **sizes, **heads, **tokens)).save_pretrained(
        folder
    )
    return folder


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def features(folder: Path, image: str, cells: int = CELLS, width: int = WIDTH) -> Path:
    """One image's file: `.h5`, or `.npz` for every second image."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(sum(map(ord, image))).normal(size=(cells, width)).astype("float32")
    if image.endswith(("1", "3")):
        np.savez(folder / f"{image}.npz", features=values)
        return folder / f"{image}.npz"
    with h5py.File(folder / f"{image}.h5", "w") as file:
        file[f"{image}/features"] = values
    return folder / f"{image}.h5"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five images for each task, used in both splits."""
    root = tmp_path / "data"
    images = [f"i{number}" for number in range(5)]
    for task in ("vqa", "gqa", "nlvr", "caption"):
        for image in images:
            features(root / task / "features", image)
    colours = ["red", "blue", "green"]
    for task in ("vqa", "gqa"):
        asked = [
            {"img_id": image, "sent": "What colour is it", "label": {colours[n % 3].title(): 1.0, "a thing": 0.3}}
            for n, image in enumerate(images)
        ]
        write(root / task / "answers.json", [*colours, "A thing"])
        for split in ("train", "val"):
            write(root / task / f"{split}.json", asked)
    pairs = [
        {"img0": image, "img1": images[n - 1], "sent": "both are red", "label": bool(n % 2)}
        for n, image in enumerate(images)
    ]
    for split in ("train", "val"):
        write(root / "nlvr" / f"{split}.json", pairs)
    described = [
        {"filename": f"{image}.jpg", "split": split, "sentences": [{"raw": "A red thing"}, {"raw": "a thing of red"}]}
        for image, split in zip(images, ["train", "restval", "train", "val", "val"], strict=True)
    ]
    write(root / "caption" / "dataset_coco.json", {"images": described})
    return root
