"""Generated text, and its scores."""

from __future__ import annotations

from typing import Any

from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.vision_language.data import Collator
from coeff_tuning.recipes.vision_language.readers import Item


def evaluate(model: Any, collator: Collator, items: list[Item], batch: int, sizes: dict[str, int]) -> float:
    """Generate for every item of one task, and score.

    Args:
        model: the trained model.
        collator: of its batches.
        items: of one task.
        batch: items at once.
        sizes: `num_beams` and `max_new_tokens`.

    Returns:
        The score.
    """
    return score(items[0].task, items, generate(model, collator, items, batch, sizes))


def generate(model: Any, collator: Collator, items: list[Item], batch: int, sizes: dict[str, int]) -> list[str]:
    """Answer every item.

    Args:
        model: the trained model, put into eval mode.
        collator: of its batches.
        items: what is asked.
        batch: items at once.
        sizes: `num_beams` and `max_new_tokens`.

    Returns:
        A text for each item.
    """
    track = require("rich.progress").track
    base = model.eval().get_base_model() if hasattr(model, "get_base_model") else model.eval()
    texts: list[str] = []
    for start in track(range(0, len(items), batch), items[0].task):
        inputs = {k: v.to(base.device) for k, v in collator.prompts(items[start : start + batch]).items()}
        fixed = {"do_sample": False, "pad_token_id": collator.tokenizer.pad_token_id}
        ids = base.answer(inputs["features"], inputs["input_ids"], inputs["attention_mask"], **sizes, **fixed)
        texts += collator.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def score(task: str, items: list[Item], texts: list[str]) -> float:
    """Score one task: mean score of the generated answer, CIDEr for captions, both in percent.

    Args:
        task: one of `readers.TASKS`.
        items: what was asked.
        texts: what was generated.

    Returns:
        The score. Captions are lower-cased and split at spaces, not by the Java tokenizer of the reference scorer.

    Raises:
        MissingDependencyError: captions are scored and pycocoevalcap is not installed.
    """
    texts = [text.strip().lower() for text in texts]
    if task != "caption":
        return 100 * sum(item.answers.get(text, 0.0) for item, text in zip(items, texts, strict=True)) / len(items)
    cider = require("pycocoevalcap.cider.cider").Cider()
    references = {i: [a.lower() for a in item.answers] for i, item in enumerate(items)}
    return 100 * float(cider.compute_score(references, {i: [text] for i, text in enumerate(texts)})[0])
