"""The linear probe: logistic regression on frozen features, trained until it converges.

Features are what the model's own head would see, extracted once. The regularisation strength, and whether features
are standardised, are chosen by cross-validation on the training data. The result is folded into the model's head, so
that it predicts, saves and loads like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.models import LoadedModel

_STRENGTHS = np.logspace(-4, 2, 7)
_FOLDS = 5


def fit_probe(
    loaded: LoadedModel, rows: Any, collator: Callable[..., Any], batch_size: int, seed: int
) -> list[dict[str, float]]:
    """Train the head of a model by logistic regression.

    Args:
        loaded: the model; its head is overwritten.
        rows: model inputs with `labels`.
        collator: makes a batch.
        batch_size: samples per forward pass.
        seed: of the folds.

    Returns:
        Cross-validated accuracy by inverse regularisation strength: `{"C": ..., "accuracy": ...}`. One entry
        without accuracy where a class has a single sample.

    Raises:
        RunError: the head has other new layers before its last one, or the regression did not converge.
    """
    head_name = _last_layer(loaded)
    features, labels = extract_features(loaded.model, head_name, rows, collator, batch_size)
    head = loaded.model.get_submodule(head_name)
    pipeline, scores = _search(features, labels, head.bias is not None, seed)
    weight, bias = _fold(pipeline, loaded.model.config.num_labels)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))
    return scores


def extract_features(
    model: Any, head_name: str, rows: Any, collator: Callable[..., Any], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the last layer sees, in eval mode.

    Args:
        model: a classifier.
        head_name: its last linear layer; replaced by the identity meanwhile, so that a model which picks a token
            after its head (decoders) picks the same one here.
        rows: model inputs with `labels`.
        collator: makes a batch.
        batch_size: samples per forward pass.

    Returns:
        Features `(N, width)` and labels `(N,)`.
    """
    from torch.utils.data import DataLoader

    track = require("rich.progress").track

    head = model.get_submodule(head_name)
    device = head.weight.device
    was_training = model.training
    model.eval().set_submodule(head_name, nn.Identity())
    features, labels = [], []
    try:
        for batch in track(DataLoader(rows, batch_size, collate_fn=collator), "features"):
            labels.append(np.asarray(batch.pop("labels")))
            inputs = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
            with torch.no_grad():
                features.append(model(**inputs).logits.float().cpu().numpy())
    finally:
        model.set_submodule(head_name, head)
        model.train(was_training)
    return np.concatenate(features), np.concatenate(labels)


def linear_layers(loaded: LoadedModel) -> list[str]:
    """The linear layers of a head.

    Args:
        loaded: the model; a probe needs exactly one.

    Returns:
        Their names.
    """
    return [
        name
        for head in loaded.head
        for name, module in loaded.model.named_modules()
        if (name == head or name.startswith(f"{head}.")) and isinstance(module, nn.Linear)
    ]


def _last_layer(loaded: LoadedModel) -> str:
    linear = linear_layers(loaded)
    if len(linear) != 1:
        raise RunError(
            f"a linear probe needs a head with one linear layer; {type(loaded.model).__name__} has the new layers "
            f"{', '.join(linear)}. For texts, --pooling mean gives such a head"
        )
    return linear[0]


def _search(features: np.ndarray, labels: np.ndarray, intercept: bool, seed: int) -> tuple[Any, list[dict[str, float]]]:
    """Fit by cross-validation; a warning of sklearn that it did not converge becomes an error."""
    linear_model = require("sklearn.linear_model")
    selection = require("sklearn.model_selection")
    scaler = require("sklearn.preprocessing").StandardScaler(with_mean=intercept)
    pipeline = require("sklearn.pipeline").Pipeline(
        [
            ("scale", scaler),
            ("fit", linear_model.LogisticRegression(max_iter=20_000, fit_intercept=intercept)),
        ]
    )
    folds = min(_FOLDS, int(np.bincount(labels).min()))
    # The problems are so small that threads only wait for each other: up to 20 times slower on a busy machine.
    limit_threads = require("threadpoolctl").threadpool_limits
    with warnings.catch_warnings(), limit_threads(1):
        warnings.simplefilter("error", require("sklearn.exceptions").ConvergenceWarning)
        try:
            if folds < 2:
                return pipeline.fit(features, labels), [{"C": 1.0}]
            search = selection.GridSearchCV(
                pipeline,
                {"scale": [scaler, "passthrough"], "fit__C": list(_STRENGTHS)},
                cv=selection.StratifiedKFold(folds, shuffle=True, random_state=seed),
                error_score="raise",
            ).fit(features, labels)
        except require("sklearn.exceptions").ConvergenceWarning as warning:
            raise RunError(
                f"the linear probe did not converge: {warning}. --head_start random trains a head without it"
            ) from None
    results = search.cv_results_
    scaled = search.best_params_["scale"]
    scores = [
        {"C": float(p["fit__C"]), "accuracy": float(score)}
        for p, score in zip(results["params"], results["mean_test_score"], strict=True)
        if p["scale"] is scaled or p["scale"] == scaled
    ]
    return search.best_estimator_, scores


def _fold(pipeline: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(classes, width)` and bias `(classes,)` that give the pipeline's log-odds on raw features."""
    fit, scaler = pipeline.named_steps["fit"], pipeline.named_steps["scale"]
    weight, bias = fit.coef_, np.broadcast_to(fit.intercept_, fit.coef_.shape[:1]).copy()
    if scaler != "passthrough":
        weight = weight / scaler.scale_
        if scaler.with_mean:
            bias = bias - weight @ scaler.mean_
    if classes == 2 and len(weight) == 1:  # sklearn gives the log-odds of the second class
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
