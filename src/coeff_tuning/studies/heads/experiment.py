"""Train a small vision transformer on half of the digits, then adapt it to the other half with few samples.

The source task has 20 classes: five digits in four orientations. The target task has the other five digits, upright.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.models import LoadedModel
from coeff_tuning.recipes.probe import fit_probe
from coeff_tuning.recipes.trainer import coeff_parameters

# Everything that decides a row beside heads, method, seed and the learning rate that is searched.
SETUP: dict[str, Any] = {
    "data": "scikit-learn digits, 8 x 8 pixels",
    "width": 64,
    "layers": 4,
    "mlp_width": 128,
    "patch": 2,
    "source_steps": 400,
    "source_batch": 32,
    "source_learning_rate": 2e-3,
    "train_samples_per_class": 16,
    "pool_per_class": 60,
    "target_steps": 200,
    "target_batch": 16,
    "head_learning_rate": 1e-3,
    "coeff_dropout": 0.2,
}
# `mixing` of `CoeffConfig`. Every head has its own values here, so "group" leaves one factor for each head.
METHODS: dict[str, str | None] = {"probe": None, "scales": "group", "coefficients": "full"}
_CLASSES = 5
_ORIENTATIONS = 4
_TEST_SHARE = 5  # one image of so many is kept from the source task


class Images(NamedTuple):
    """Images with labels.

    Attributes:
        pixels: `(N, 1, 8, 8)`, in [-1, 1].
        labels: `(N,)`.
    """

    pixels: Tensor
    labels: Tensor


class Target(NamedTuple):
    """The task that a trained model is adapted to.

    Attributes:
        train: few images of each class, drawn by the seed.
        validation: what is left of the pool that they are drawn from.
        test: images outside the pool, which is the same for all seeds.
    """

    train: Images
    validation: Images
    test: Images


def load(seed: int) -> tuple[Images, Images, Target]:
    """Split the digits.

    Args:
        seed: draws the five digits of the source task, and the images to train on.

    Returns:
        Source task to train on and to measure on, and the target task.
    """
    digits = require("sklearn.datasets").load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(2 * _CLASSES, generator=generator).tolist()
    source: list[list[Images]] = [[], []]
    target: list[list[Images]] = [[], [], []]
    for label, digit in enumerate(order[:_CLASSES]):
        own = pixels[labels == digit]
        own = own[torch.randperm(len(own), generator=generator)]
        cut = len(own) // _TEST_SHARE
        for parts, part in zip(source, (own[cut:], own[:cut]), strict=True):
            for turn in range(_ORIENTATIONS):
                parts.append(_labelled(torch.rot90(part, turn, (2, 3)), _ORIENTATIONS * label + turn))
    for label, digit in enumerate(order[_CLASSES:]):
        own = pixels[labels == digit]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(digit))]
        pool, test = own[: SETUP["pool_per_class"]], own[SETUP["pool_per_class"] :]
        pool = pool[torch.randperm(len(pool), generator=generator)]
        few = SETUP["train_samples_per_class"]
        for parts, part in zip(target, (pool[:few], pool[few:], test), strict=True):
            parts.append(_labelled(part, label))
    return _join(source[0]), _join(source[1]), Target(*map(_join, target))


def _labelled(pixels: Tensor, label: int) -> Images:
    return Images(pixels, torch.full((len(pixels),), label))


def _join(parts: list[Images]) -> Images:
    return Images(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def make_model(heads: int) -> Any:
    """A vision transformer with random weights; their number does not depend on H.

    Args:
        heads: H, which must divide the width.

    Returns:
        A model with a head for the source task.
    """
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=SETUP["width"],
        num_hidden_layers=SETUP["layers"],
        num_attention_heads=heads,
        intermediate_size=SETUP["mlp_width"],
        image_size=8,
        patch_size=SETUP["patch"],
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=_CLASSES * _ORIENTATIONS,
    )
    return ViTForImageClassification(config)


@lru_cache(maxsize=2)
def start(heads: int, seed: int) -> tuple[Any, float]:
    """Train a model on the source task and give it the converged probe as its head.

    The last two are kept: all methods of a seed, and of the search, start from the same model.

    Args:
        heads: H.
        seed: of data, weights and batches.

    Returns:
        The model, which nobody may change, and its accuracy on images of the source task that it was not trained on.
    """
    from transformers import default_data_collator, set_seed

    set_seed(seed)
    train, heldout, target = load(seed)
    model = make_model(heads)
    groups = [{"params": list(model.parameters()), "lr": SETUP["source_learning_rate"], "weight_decay": 0.01}]
    fit(model, train, groups, SETUP["source_steps"], SETUP["source_batch"], seed)
    source_accuracy = accuracy(model, heldout)
    model.classifier = nn.Linear(SETUP["width"], _CLASSES)
    model.config.num_labels = model.num_labels = _CLASSES
    rows = [{"pixel_values": pixels, "labels": int(label)} for pixels, label in zip(*target.train, strict=True)]
    fit_probe(LoadedModel(model, ["classifier"], None), rows, default_data_collator, len(rows), seed)
    return model, source_accuracy


def run(
    heads: int, method: str, seed: int, coeff_learning_rate: float | None, *, on_validation: bool
) -> dict[str, Any]:
    """Adapt a model to the target task; the frozen model is the same for all methods.

    Args:
        heads: H.
        method: one of `METHODS`.
        seed: of data, weights, batches and dropout.
        coeff_learning_rate: of the coefficients; None for the probe.
        on_validation: measure on validation images, otherwise on test images.

    Returns:
        Accuracies, after the last step, and the number of coefficients.
    """
    import peft
    from transformers import set_seed

    from coeff_tuning import CoeffConfig

    model, source_accuracy = start(heads, seed)
    target = load(seed)[2]
    mixing = METHODS[method]
    if mixing is not None:
        set_seed(seed)
        config = CoeffConfig(mixing=mixing, coeff_dropout=SETUP["coeff_dropout"], modules_to_save=["classifier"])
        model = peft.get_peft_model(copy.deepcopy(model), config)
        coefficients = coeff_parameters(model)
        known = {id(parameter) for parameter in coefficients}
        head = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        groups = [
            {"params": coefficients, "lr": coeff_learning_rate, "weight_decay": 0.0},
            {"params": head, "lr": SETUP["head_learning_rate"], "weight_decay": 0.0},
        ]
        fit(model, target.train, groups, SETUP["target_steps"], SETUP["target_batch"], seed)
    numbers = {"probe": 0, "scales": heads, "coefficients": heads**2}[method] * SETUP["layers"]
    heldout = target.validation if on_validation else target.test
    return {
        "accuracy": accuracy(model, heldout),
        "source_accuracy": source_accuracy,
        "coefficients": numbers,
        "heldout_images": len(heldout.labels),
    }


def fit(model: Any, data: Images, groups: list[dict[str, Any]], steps: int, batch: int, seed: int) -> None:
    """Train with AdamW; the learning rates rise for a tenth of the steps, then fall as a cosine.

    Args:
        model: gives `logits`.
        data: images to train on.
        groups: parameters with their learning rates.
        steps: number of batches.
        batch: images in one, drawn with replacement.
        seed: draws them.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(data.labels), (batch,), generator=generator)
        loss = F.cross_entropy(model(pixel_values=data.pixels[chosen]).logits, data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def accuracy(model: Any, data: Images) -> float:
    """Share of images that a model names.

    Args:
        model: in eval mode; gives `logits`.
        data: images.

    Returns:
        In [0, 1].
    """
    with torch.no_grad():
        found = model(pixel_values=data.pixels).logits.argmax(-1)
    return float((found == data.labels).float().mean())
