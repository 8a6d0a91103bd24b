"""Model and data of a run, and its trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from coeff_tuning.errors import RunError
from coeff_tuning.recipes import run_folder
from coeff_tuning.recipes.arguments import MethodArguments, RecipeArguments
from coeff_tuning.recipes.assets import resolve_model
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.methods import apply_method, load_trained
from coeff_tuning.recipes.models import LoadedModel, quiet_transformers, set_padding
from coeff_tuning.recipes.trainer import CoeffTrainer
from coeff_tuning.recipes.vision_language import readers
from coeff_tuning.recipes.vision_language.data import Collator, RoundRobin
from coeff_tuning.recipes.vision_language.model import PROJECTION, load_pretrained

if TYPE_CHECKING:
    from coeff_tuning.recipes.vision_language.command import VLArguments

TASK = "image-text"


@dataclass
class Prepared:
    """What a run trains and measures.

    Attributes:
        loaded: the pretrained model; its head is the projection.
        model: the same with what the method adds.
        collator: makes batches.
        train: items to train on, of all tasks.
        heldout: items to measure.
        projection_parameters: numbers of the projection.
    """

    loaded: LoadedModel
    model: Any
    collator: Collator
    train: list[readers.Item]
    heldout: list[readers.Item]
    projection_parameters: int


class _Trainer(CoeffTrainer):
    """Tasks take turns, batch by batch; a batch is shared by all processes."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> RoundRobin:
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return RoundRobin(self.train_dataset, batch, self.args.seed)


def prepare(about: VLArguments, method: MethodArguments) -> Prepared:
    """Read and check all data, then load the model and add what the method trains.

    Args:
        about: which model and data.
        method: what is trained.

    Returns:
        Both.
    """
    root = Path(about.data)
    train, heldout = (
        [item for task in about.tasks for item in readers.read(root, task, split)]
        for split in ("train", about.eval_split)
    )
    loaded = load_language_model(about.model_name_or_path, readers.check_features([*train, *heldout]))
    if about.projection:
        start_from(loaded.model, Path(about.projection))
    size = loaded.head_parameters  # before PEFT keeps a second copy of it
    model = apply_method(TASK, loaded, method)
    if method.method == "linear":
        model.get_submodule(PROJECTION).requires_grad_(True)
    collator = Collator(loaded.processor, about.text_length, is_encoder_decoder=loaded.model.config.is_encoder_decoder)
    return Prepared(loaded, model, collator, train, heldout, size)


def load_language_model(name: str, width: int) -> LoadedModel:
    """A pretrained language model with a new projection, and its tokenizer.

    Args:
        name: hub id, local folder, or offline name.
        width: number of features of an image token.

    Returns:
        The model; its head is the projection.

    Raises:
        RunError: it cannot be loaded.
    """
    source = resolve_model(name)
    with quiet_transformers():
        model = load_pretrained(source, width)
    tokenizer = AutoTokenizer.from_pretrained(source)
    set_padding(model, tokenizer)
    return LoadedModel(model, [PROJECTION], tokenizer, is_head_new=True)


def start_from(model: Any, folder: Path) -> None:
    """Take over the projection of an earlier run.

    Args:
        model: its projection is overwritten.
        folder: run folder.

    Raises:
        RunError: it holds no finished run, or its projection has another shape.
    """
    earlier, _ = load(folder)
    own = model.get_submodule(PROJECTION)
    found = {k: v for k, v in earlier.state_dict().items() if PROJECTION in k and "original_module" not in k}
    state = {name: next(v for k, v in found.items() if k.endswith(name)) for name in own.state_dict()}
    shapes = [{name: tuple(v.shape) for name, v in of.items()} for of in (state, own.state_dict())]
    if shapes[0] != shapes[1]:
        raise RunError(f"the projection of {folder} has shapes {shapes[0]}; this run needs {shapes[1]}")
    own.load_state_dict(state)


def load(folder: str | Path) -> tuple[Any, Any]:
    """The model of a finished run.

    Args:
        folder: run folder.

    Returns:
        The model in eval mode, and its tokenizer. `model.get_base_model()` (or, of method `linear`, the model itself)
        has `answer`.

    Raises:
        RunError: the folder holds no finished run of `coeff-tuning vl`.
    """
    folder = Path(folder)
    metrics = run_folder.read_metrics(folder)
    if metrics.get("task") != TASK:
        raise RunError(f"{folder} is a run of {metrics.get('task')!r}, not of coeff-tuning vl")
    settings = require("yaml").safe_load((folder / run_folder.CONFIG_FILE).read_text(encoding="utf-8"))
    name = settings.get("model_name_or_path", "facebook/bart-base")
    loaded = load_language_model(name, metrics["visual_width"])
    return load_trained(loaded, metrics["method"], folder), loaded.processor


def make_trainer(prepared: Prepared, method: MethodArguments, arguments: RecipeArguments) -> CoeffTrainer:
    """The trainer of a run.

    Args:
        prepared: model and data.
        method: learning rates.
        arguments: everything else.

    Returns:
        The trainer.
    """
    arguments.label_names = ["labels"]
    return _Trainer(
        model=prepared.model,
        args=arguments,
        train_dataset=prepared.train,
        data_collator=prepared.collator,
        coeff_learning_rate=method.coeff_learning_rate,
        coeff_weight_decay=method.coeff_weight_decay,
        lora_learning_rate=method.lora_learning_rate,
    )
