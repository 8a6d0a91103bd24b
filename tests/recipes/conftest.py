"""Tiny random models and data sets, made on the spot; nothing here is fetched."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="coeff-tuning-tests-"))

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "the", "film", "was", "food", "here", "really"]


def _tokenizer(folder: Path) -> tf.PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[END]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]", model_max_length=64
    )
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder: BERT body, tokenizer, and the file that asks for mean pooling."""
    folder = tmp_path_factory.mktemp("bert")
    _tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    tf.BertModel(tf.BertConfig(vocab_size=15, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    _tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = tf.LlamaConfig(vocab_size=15, intermediate_size=16, eos_token_id=2, pad_token_id=0, **sizes)
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = tf.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=1, patch_size=7, image_size=28
    )
    tf.Dinov2Model(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of 40 reviews; the class is told by one word."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    generator = np.random.default_rng(0)
    rows = ["text,label"]
    for index in range(40):
        words = WORDS[:3] if index % 2 else WORDS[3:6]
        middle = " ".join(generator.choice(WORDS[6:], size=3))
        rows.append(f"the {middle} {generator.choice(words)},{'positive' if index % 2 else 'negative'}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """An image folder: 10 red and 10 blue squares to train on, 6 to test on."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for label, channel in (("red", 0), ("blue", 2)):
            folder = tmp_path / "colours" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 80, (12, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "colours"
