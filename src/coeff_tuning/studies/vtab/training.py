"""One training run: images in, accuracy of the last epoch out."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from coeff_tuning.studies.vtab import data
from coeff_tuning.studies.vtab.model import build
from coeff_tuning.studies.vtab.recipes import FIRST_LEARNING_RATE, LAST_LEARNING_RATE, RECIPES
from coeff_tuning.studies.vtab.tasks import CLASSES


@dataclass(frozen=True)
class Options:
    """What is the same for all runs of a study.

    Attributes:
        model: a model of timm.
        pretrained: load its weights; random otherwise.
        normalise: one of `data.NORMALISATIONS`.
        epochs: None: those of the recipe.
        search: choose settings on val200.
        workers: processes that read images.
    """

    model: str
    pretrained: bool = True
    normalise: str = "imagenet"
    epochs: int | None = None
    search: bool = True
    workers: int = 4


class Job(NamedTuple):
    """What a row is about.

    Attributes:
        task: one of `tasks.CLASSES`.
        method: one of `recipes.RECIPES`.
        seed: of head, method, order of images and dropout.
    """

    task: str
    method: str
    seed: int


def fit(job: Job, settings: dict[str, float], rows: tuple[Any, Any], options: Options) -> dict[str, Any]:
    """Train on one list of images and measure on another, after the last epoch.

    Args:
        job: task, method and seed.
        settings: of the method.
        rows: lists to train and to measure on, from `data.read_list`.
        options: model, normalisation, epochs.

    Returns:
        `accuracy`, mean training loss, numbers of parameters and images, and seconds.
    """
    from transformers import set_seed

    set_seed(job.seed)
    drop_path, pretrained = RECIPES[job.method].drop_path, options.pretrained
    classifier = build(options.model, CLASSES[job.task], job.method, settings, drop_path, pretrained=pretrained)
    train, heldout = (data.with_pixels(part, classifier.size, options.normalise) for part in rows)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # nothing is saved in it
        trainer = _trainer(classifier, folder, job, settings, (train, heldout), options)
        trained = trainer.train()
        measured = trainer.evaluate()
    return {
        "accuracy": measured["eval_accuracy"],
        "train_loss": trained.training_loss,
        "extra_parameters": classifier.extra_parameters,
        "head_parameters": classifier.head_parameters,
        "train_images": len(train),
        "heldout_images": len(heldout),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _trainer(
    classifier: Any, folder: str, job: Job, settings: dict[str, float], rows: tuple[Any, Any], options: Options
) -> Any:
    from transformers import TrainingArguments, default_data_collator

    from coeff_tuning.recipes.trainer import CoeffTrainer

    recipe = RECIPES[job.method]
    rate = recipe.learning_rate
    arguments = TrainingArguments(
        output_dir=folder,
        seed=job.seed,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        num_train_epochs=options.epochs or recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=256,
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": LAST_LEARNING_RATE / rate, "warmup_lr_rate": FIRST_LEARNING_RATE / rate},
        warmup_steps=recipe.warmup_epochs / recipe.epochs,  # below 1: part of all steps
        dataloader_drop_last=False,  # of the images that are measured on, none may be left out
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # a run that diverged shows in its row
        report_to=[],
    )
    return CoeffTrainer(
        model=classifier,
        args=arguments,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        data_collator=default_data_collator,
        compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
        coeff_learning_rate=settings.get("coeff_learning_rate", rate),
    )
