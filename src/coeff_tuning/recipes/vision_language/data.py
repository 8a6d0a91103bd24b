"""Batches of several tasks, and the order in which tasks take turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from coeff_tuning.recipes.vision_language.model import IGNORED
from coeff_tuning.recipes.vision_language.readers import Item, load_features

_GRID, _POOLED = 7, 6  # of the paper's features


class RoundRobin(Sampler[int]):
    """Full batches of one task, tasks in turn; what does not fill a batch comes last.

    Args:
        items: all items.
        batch: samples of a batch.
        seed: draws the order, together with the epoch.
    """

    def __init__(self, items: list[Item], batch: int, seed: int) -> None:
        self.items, self.batch, self.seed, self.epoch = items, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw another order.

        Args:
            epoch: number of the epoch.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        queues: dict[str, list[int]] = {}
        for index in torch.randperm(len(self.items), generator=generator).tolist():
            queues.setdefault(self.items[index].task, []).append(index)
        ordered = [queues[task] for task in sorted(queues)]
        while any(len(queue) >= self.batch for queue in ordered):
            for queue in ordered:
                if len(queue) >= self.batch:
                    yield from queue[: self.batch]
                    del queue[: self.batch]
        for queue in ordered:
            yield from queue


class Collator:
    """Items to tensors: image features, the prompt with its text, and labels.

    A grid of 49 cells is pooled to 36 by its maxima, as in the paper; others are taken as they are.

    Args:
        tokenizer: of the model; it can pad.
        length: longest text and longest answer, in tokens.
        is_encoder_decoder: whether the answer stands alone, or after the prompt.
    """

    def __init__(self, tokenizer: Any, length: int, *, is_encoder_decoder: bool) -> None:
        self.tokenizer, self.length, self.is_encoder_decoder = tokenizer, length, is_encoder_decoder

    def __call__(self, items: list[Item]) -> dict[str, Tensor]:
        """A batch to train on.

        Args:
            items: samples, of any tasks.

        Returns:
            `features` `(B, N, width)`, `input_ids` `(B, L)`, `attention_mask` `(B, N + L)` and `labels`: `(B, A)` for
            an encoder-decoder, else `(B, N + L)`.
        """
        batch = self.prompts(items)
        answers = [max(item.answers, key=item.answers.__getitem__) for item in items]
        if self.is_encoder_decoder:
            labels = self._tokens(answers)
            batch["labels"] = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, IGNORED)
            return batch
        ids = [[*self._ids(f" {answer}")[: self.length], self.tokenizer.eos_token_id] for answer in answers]
        answer_ids = pad_sequence([torch.tensor(row) for row in ids], True, self.tokenizer.pad_token_id)
        has_answer = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in ids], True)
        before = torch.full_like(batch["attention_mask"], IGNORED)
        batch["labels"] = torch.cat([before, answer_ids.masked_fill(has_answer == 0, IGNORED)], dim=1)
        batch["input_ids"] = torch.cat([batch["input_ids"], answer_ids], dim=1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], has_answer], dim=1)
        return batch

    def prompts(self, items: list[Item]) -> dict[str, Tensor]:
        """A batch to answer.

        Args:
            items: samples, of any tasks.

        Returns:
            `features` `(B, N, width)`, `input_ids` `(B, L)` and `attention_mask` `(B, N + L)`.
        """
        images = [torch.cat([_image(item, i) for i in range(len(item.features))]) for item in items]
        seen = pad_sequence([torch.ones(len(image), dtype=torch.long) for image in images], True)
        text = self._tokens([f"{item.task}: {item.text}".strip() for item in items])
        mask = torch.cat([seen, text["attention_mask"]], dim=1)
        return {"features": pad_sequence(images, True), "input_ids": text["input_ids"], "attention_mask": mask}

    def _tokens(self, texts: list[str]) -> Any:
        cut = {"truncation": True, "max_length": self.length}
        return self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", **cut)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _image(item: Item, index: int) -> Tensor:
    tokens = torch.from_numpy(load_features(item.features[index], item.name))
    if len(tokens) != _GRID**2:
        return tokens
    pooled = adaptive_max_pool2d(tokens.T.reshape(1, -1, _GRID, _GRID), _POOLED)
    return pooled.reshape(-1, _POOLED**2).T
