"""What a task does to its data: columns in, model inputs out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.configuration import Run
from coeff_tuning.recipes.data import Splits, load_splits
from coeff_tuning.recipes.models import LoadedModel, load_model


@dataclass
class Prepared:
    """Model and data of a run, ready for a method.

    Attributes:
        loaded: model, head and processor.
        splits: the data before it was turned into model inputs.
        train: model inputs to train on.
        heldout: model inputs to measure on.
        collator: makes a batch of a list of samples.
        compute_metrics: mean loss over samples, and accuracy for classifiers.
        reduce_logits: for causal-lm, what is kept of the logits: the loss of each sample.
    """

    loaded: LoadedModel
    splits: Splits
    train: Any
    heldout: Any
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    compute_metrics: Callable[[Any], dict[str, float]]
    reduce_logits: Callable[[Any, Tensor], Tensor] | None


def prepare(run: Run) -> Prepared:
    """Load data and model of a run.

    Args:
        run: the run.

    Returns:
        Both, with the data as model inputs.
    """
    is_image = run.task == "image-classification"
    column = run.data.image_column if is_image else run.data.text_column
    labelled = run.task != "causal-lm"
    splits = load_splits(run.data, column, run.training.seed, labelled=labelled)
    loaded = load_model(run.task, run.model, splits.labels)
    encode = {"text-classification": _texts, "image-classification": _images, "causal-lm": _blocks}[run.task]
    train, heldout = (encode(rows, column, loaded, run) for rows in (splits.train, splits.heldout))
    collator = make_collator(run, loaded)
    score, reduce_logits = (_score_classes, None) if labelled else (_score_blocks, _loss_of_blocks)
    return Prepared(loaded, splits, train, heldout, collator, score, reduce_logits)


def make_collator(run: Run, loaded: LoadedModel) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The function that makes a batch.

    Args:
        run: the run.
        loaded: its model.

    Returns:
        For texts: padding. For images: stacking, plus the flag by which models with fixed position embeddings are
        told to interpolate them.
    """
    from transformers import DataCollatorWithPadding, default_data_collator

    if run.task == "text-classification":
        return DataCollatorWithPadding(loaded.processor)  # type: ignore[no-any-return]
    if run.task == "causal-lm":
        return default_data_collator  # type: ignore[no-any-return]
    takes_flag = "interpolate_pos_encoding" in inspect.signature(loaded.model.forward).parameters
    native = getattr(loaded.model.config, "image_size", run.model.image_size)
    if not takes_flag or run.model.image_size in (None, native):
        return default_data_collator  # type: ignore[no-any-return]

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**default_data_collator(samples), "interpolate_pos_encoding": True}

    return collate


def _texts(rows: Any, column: str, loaded: LoadedModel, run: Run) -> Any:
    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = loaded.processor(batch[column], truncation=True, max_length=run.model.max_seq_length)
        return {**encoded, "labels": batch["label"]}

    _require_text(rows, column)
    return rows.map(encode, batched=True, remove_columns=rows.column_names, desc="tokenising")


def _images(rows: Any, column: str, loaded: LoadedModel, run: Run) -> Any:
    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[column]]
        pixels = loaded.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": batch["label"]}

    from datasets import Image

    if not isinstance(rows.features[column], Image):
        raise DataError(f"column {column!r} must hold images; it holds {rows.features[column]}")
    return rows.select_columns([column, "label"]).with_transform(encode)


def _blocks(rows: Any, column: str, loaded: LoadedModel, run: Run) -> Any:
    """All texts joined by the end token and cut into blocks of `max_seq_length` tokens; the rest is dropped."""
    tokenizer, length = loaded.processor, run.model.max_seq_length
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = tokenizer(batch[column], add_special_tokens=False, verbose=False)["input_ids"]
        tokens = list(chain.from_iterable([*text, *end] for text in texts))
        blocks = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
        return {"input_ids": blocks, "attention_mask": [[1] * length] * len(blocks), "labels": blocks}

    _require_text(rows, column)
    blocks = rows.map(encode, batched=True, remove_columns=rows.column_names, desc="tokenising")
    if len(blocks) == 0:
        raise DataError(f"{len(rows)} texts make less than one block of {length} tokens; lower --max_seq_length")
    return blocks


def _require_text(rows: Any, column: str) -> None:
    dtype = getattr(rows.features[column], "dtype", "")
    if dtype not in ("string", "large_string"):
        raise DataError(f"column {column!r} must hold texts; it holds {rows.features[column]}")
    if any(text is None for text in rows[column]):
        raise DataError(f"column {column!r} has rows without a text; remove them")


# Losses are taken by sample: `Trainer` has means of batches, and fills the last batches of several processes up with
# samples that it counts twice.


def _score_classes(prediction: Any) -> dict[str, float]:
    logits = _first(prediction.predictions)
    loss = F.cross_entropy(torch.as_tensor(logits).float(), torch.as_tensor(prediction.label_ids))
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids)), "loss": float(loss)}


def _score_blocks(prediction: Any) -> dict[str, float]:
    return {"loss": float(np.mean(prediction.predictions))}


def _loss_of_blocks(logits: Any, labels: Tensor) -> Tensor:
    """Mean loss over the tokens of each block, `(B,)`."""
    following = _first(logits)[:, :-1].float().transpose(1, 2)  # (B, vocabulary, L - 1)
    return F.cross_entropy(following, labels[:, 1:], reduction="none").mean(1)


def _first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs
