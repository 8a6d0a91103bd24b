"""Scores of generated text."""

from __future__ import annotations

from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.vision_language.readers import Item


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
