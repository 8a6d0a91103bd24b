"""Batches of several tasks, and the order in which tasks take turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d
from torch.utils.data import Sampler

from coeff_tuning.recipes.vision_language.readers import Item, load_features

PROMPTS = {"vqa": "vqa: ", "gqa": "gqa: ", "nlvr": "nlvr: ", "caption": "caption: "}


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
    """Items to tensors: 49 grid features pooled to 36, prompt and text, and the best answer as labels.

    Args:
        tokenizer: of the model.
        width: number of features.
        length: longest text, in tokens.
    """

    def __init__(self, tokenizer: Any, width: int, length: int) -> None:
        self.tokenizer, self.width, self.length = tokenizer, width, length

    def __call__(self, items: list[Item]) -> dict[str, Tensor]:
        images = [torch.cat([self._pooled(item, i) for i in range(len(item.features))]) for item in items]
        features = torch.nn.utils.rnn.pad_sequence(images, batch_first=True)
        seen = torch.nn.utils.rnn.pad_sequence([torch.ones(len(i), dtype=torch.long) for i in images], True)
        text = self._tokens([PROMPTS[item.task] + item.text for item in items])
        labels = self._tokens([max(item.answers, key=item.answers.__getitem__) for item in items])
        return {
            "features": features,
            "input_ids": text["input_ids"],
            "attention_mask": torch.cat([seen, text["attention_mask"]], dim=1),
            "labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100),
        }

    def _tokens(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")

    def _pooled(self, item: Item, index: int) -> Tensor:
        grid = torch.from_numpy(load_features(item.features[index], item.name, self.width))
        pooled = adaptive_max_pool2d(grid.T.reshape(1, self.width, 7, 7), 6)
        return pooled.reshape(self.width, 36).T
