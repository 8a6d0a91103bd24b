from __future__ import annotations

from pathlib import Path

import pytest

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.arguments import ModelArguments
from coeff_tuning.recipes.models import LoadedModel, load_model

LABELS = ["good", "bad"]


def _load(folder: Path, pooling: str = "auto") -> LoadedModel:
    return load_model("text-classification", ModelArguments(str(folder), pooling), LABELS)


def test_head_is_new_until_it_is_saved(bert: Path, tmp_path: Path) -> None:
    first = _load(bert)
    assert first.is_head_new
    assert first.head == ["classifier"]
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    second = _load(tmp_path)  # without the file that asks for mean pooling
    assert type(second.model) is type(first.model)
    assert not second.is_head_new
    assert second.head == ["classifier"]
    assert (second.model.classifier.weight == first.model.classifier.weight).all()


def test_body_that_the_checkpoint_does_not_hold_is_refused(bert: Path, tmp_path: Path) -> None:
    loaded = _load(bert)
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"holds 0 of the \d+ tensors below 'bert' of BertForSequenceClassification"):
        _load(tmp_path, pooling="model")  # BERT's own class does not know the names of the other one
