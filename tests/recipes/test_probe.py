from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.models import LoadedModel
from coeff_tuning.recipes.probe import extract_features, fit_probe


class Classifier(nn.Module):
    """Scales its input, then a head; dropout would show if features were taken in train mode."""

    def __init__(self, width: int, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.5))
        self.classifier = nn.Linear(width, classes, bias=bias)
        self.config = SimpleNamespace(num_labels=classes)

    def forward(self, inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.body(inputs)))


def _data(classes: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    x, y = make_classification(90, 13, n_informative=7, n_classes=classes, random_state=0)
    return [{"inputs": torch.tensor(a, dtype=torch.float32), "labels": int(b)} for a, b in zip(x, y, strict=True)], y


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "inputs": torch.stack([s["inputs"] for s in samples]),
        "labels": torch.tensor([s["labels"] for s in samples]),
    }


@pytest.mark.parametrize(("classes", "bias"), [(3, True), (2, True), (3, False), (2, False)])
def test_head_predicts_as_the_regression(classes: int, bias: bool) -> None:
    rows, labels = _data(classes)
    model = Classifier(13, classes, bias=bias)
    scores = fit_probe(LoadedModel(model, ["classifier"], None), rows, _collate, 32, seed=0)
    best = max(score["accuracy"] for score in scores)
    assert len(scores) == 7
    model.eval()
    with torch.no_grad():
        probabilities = model(_collate(rows)["inputs"]).logits.softmax(-1).numpy()
    assert (probabilities.argmax(-1) == labels).mean() >= best > 1 / classes + 0.1

    # The same optimum, found independently on the same features with the strength that was chosen.
    features, _ = extract_features(model, "classifier", rows, _collate, 90)
    strengths = [score["C"] for score in scores if score["accuracy"] == best]
    candidates = []
    for strength in strengths:
        for scale in (np.ones(13), features.std(0)):
            x = (features - (features.mean(0) if bias else 0)) / scale
            candidates.append(
                LogisticRegression(C=strength, fit_intercept=bias, tol=1e-8, max_iter=9999)
                .fit(x, labels)
                .predict_proba(x)
            )
    assert min(np.abs(c - probabilities).max() for c in candidates) < 5e-3


def test_features_are_those_of_the_head_and_the_model_is_left_as_it_was() -> None:
    rows, labels = _data(3)
    model = Classifier(13, 3).train()
    head = model.classifier
    features, found = extract_features(model, "classifier", rows, _collate, 7)
    torch.testing.assert_close(torch.from_numpy(features), model.body[0](_collate(rows)["inputs"]))
    assert found.tolist() == labels.tolist()
    assert model.classifier is head
    assert model.training


def test_head_with_new_layers_before_the_last_is_refused() -> None:
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(RunError, match=r"new layers classifier\.0, classifier\.2"):
        fit_probe(LoadedModel(model, ["classifier"], None), [], _collate, 1, seed=0)
