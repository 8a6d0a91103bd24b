"""Load the pretrained model of a task, with a new head where the task needs one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coeff_tuning.errors import DataError, RunError
from coeff_tuning.recipes.arguments import ModelArguments
from coeff_tuning.recipes.assets import resolve_model

_NEW = ("missing_keys", "mismatched_keys")  # what a checkpoint does not hold, in transformers' loading info
PEFT_TASK_TYPES = {
    "text-classification": "SEQ_CLS",
    "image-classification": None,
    "causal-lm": "CAUSAL_LM",
    "image-text": None,
}


@dataclass
class LoadedModel:
    """A pretrained model that is ready for a method.

    Attributes:
        model: the model, in float32.
        head: names of the modules that the checkpoint does not hold (new), or that hold the last layer; empty for
            causal-lm.
        processor: tokenizer or image processor.
        is_head_new: whether the checkpoint does not hold the head.
    """

    model: Any
    head: list[str]
    processor: Any
    is_head_new: bool = False

    @property
    def head_parameters(self) -> int:
        """Numbers in the head."""
        return sum(p.numel() for name in self.head for p in self.model.get_submodule(name).parameters())


def load_model(task: str, arguments: ModelArguments, labels: list[str], folder: str | None = None) -> LoadedModel:
    """Load model and processor.

    Args:
        task: one of `arguments.TASKS`.
        arguments: which model.
        labels: names of the classes; empty for causal-lm.
        folder: run folder to load instead (method `full` saves the whole model there).

    Returns:
        The model, its head and its processor.

    Raises:
        RunError: the model cannot be loaded for this task.
        DataError: it is a text classifier and its tokenizer cannot pad.
    """
    source = folder or resolve_model(arguments.model_name_or_path)
    try:
        with quiet_transformers():
            processor = _load_processor(task, source, arguments)
            model, info = _load(task, source, arguments, labels)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"model {arguments.model_name_or_path!r} cannot be loaded for {task}: {reason}") from error
    if task == "text-classification":
        set_padding(model, processor)
    is_new = any(info.get(key) for key in _NEW)
    return LoadedModel(model, find_head(model, info) if labels else [], processor, bool(labels) and is_new)


def model_class(task: str, arguments: ModelArguments) -> Any:
    """The class whose `from_pretrained` loads the model.

    Args:
        task: one of `arguments.TASKS`.
        arguments: which model, with which pooling.

    Returns:
        A transformers auto class, or `MeanPoolingForSequenceClassification`.
    """
    import transformers

    if task == "image-classification":
        return transformers.AutoModelForImageClassification
    if task == "causal-lm":
        return transformers.AutoModelForCausalLM
    from coeff_tuning.recipes.pooling import MeanPoolingForSequenceClassification, is_mean_pooled

    mean = arguments.pooling == "mean"
    if arguments.pooling == "auto":
        mean = is_mean_pooled(resolve_model(arguments.model_name_or_path))
    return MeanPoolingForSequenceClassification if mean else transformers.AutoModelForSequenceClassification


def find_head(model: Any, loading_info: dict[str, Any]) -> list[str]:
    """Names of the modules that make up the head.

    Args:
        model: a classifier.
        loading_info: what `from_pretrained(..., output_loading_info=True)` returned beside it.

    Returns:
        The modules that the checkpoint did not hold or held with another size; where it held everything, the last
        linear layer with one output per class.

    Raises:
        RunError: there is no such layer, or the checkpoint is of another architecture.
    """
    from torch import nn

    prefix = getattr(model, "base_model_prefix", "") + "."
    found = [key for name in _NEW for key in loading_info.get(name, ())]
    keys = {key[0] if isinstance(key, tuple) else key for key in found}
    body = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    if 2 * len(keys & body) > len(body):
        raise RunError(
            f"the checkpoint holds {len(body - keys)} of the {len(body)} tensors below {prefix[:-1]!r} of "
            f"{type(model).__name__}; the others would be random. Name a checkpoint of this architecture"
        )
    modules = {key.rpartition(".")[0] for key in keys}
    names = {name if name.startswith(prefix) else name.partition(".")[0] for name in modules}
    if names:
        return sorted(names)
    classes = model.config.num_labels
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not last:
        raise RunError(f"{type(model).__name__} has no linear layer with {classes} outputs to use as its head")
    return [last[-1].partition(".")[0]]


def _load(task: str, source: str, arguments: ModelArguments, labels: list[str]) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    cls = model_class(task, arguments)
    if task == "causal-lm":
        return cls.from_pretrained(source, dtype=torch.float32), {}
    names = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
    }
    if not hasattr(cls, "forward"):  # an auto class
        names.update(output_loading_info=True, ignore_mismatched_sizes=True)
        model, info = cls.from_pretrained(source, dtype=torch.float32, **names)
        return model, info
    from coeff_tuning.recipes.pooling import is_saved

    info = {} if is_saved(transformers.AutoConfig.from_pretrained(source)) else {"missing_keys": {"classifier.weight"}}
    return cls.from_pretrained(source, dtype=torch.float32, **names), info


def _load_processor(task: str, source: str, arguments: ModelArguments) -> Any:
    import transformers

    if task != "image-classification":
        return transformers.AutoTokenizer.from_pretrained(source)
    processor = transformers.AutoImageProcessor.from_pretrained(source)
    if arguments.image_size is not None:
        square = {"height": arguments.image_size, "width": arguments.image_size}
        by_edge = getattr(processor.size, "shortest_edge", None) is not None
        processor.size = {"shortest_edge": arguments.image_size} if by_edge else square
        if getattr(processor, "crop_size", None) is not None:
            processor.crop_size = square
    return processor


def set_padding(model: Any, tokenizer: Any) -> None:
    """Make sure that texts can be batched.

    Args:
        model: its configuration gets the token where it has none.
        tokenizer: without a padding token of its own it takes its end token.

    Raises:
        DataError: it has neither.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has neither a padding token nor an end token; texts cannot be batched")
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the report that the head is new: that is what a head is here.

    Yields:
        Nothing.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
