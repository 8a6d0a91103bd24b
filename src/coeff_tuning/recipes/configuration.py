"""From command line and config file to one `Run`.

A value comes from the command line, else from `--config file.yaml`, else from the method's defaults, else from
`arguments`.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.arguments import (
    TASKS,
    DataArguments,
    MethodArguments,
    ModelArguments,
    RecipeArguments,
)
from coeff_tuning.recipes.extras import require

_GROUPS = (ModelArguments, DataArguments, MethodArguments, RecipeArguments)
# Where a run is written and how it was started do not change its result.
_NOT_SETTINGS = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "disable_tqdm")
# Defaults that only make sense for one method.
_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {"full": {"learning_rate": 5e-5}}


@dataclass
class Run:
    """Everything that defines one run.

    Attributes:
        task: one of `arguments.TASKS`.
        model: model arguments.
        data: data arguments.
        method: method arguments.
        training: `TrainingArguments`.
        resolved: every flag that was given or differs from its default, as `config.yaml` holds them.
    """

    task: str
    model: ModelArguments
    data: DataArguments
    method: MethodArguments
    training: RecipeArguments
    resolved: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.training.output_dir))


def build_parser(**kwargs: Any) -> HfArgumentParser:
    """Parser of all flags of a run.

    Args:
        **kwargs: passed to `HfArgumentParser`.

    Returns:
        The parser.
    """
    parser = HfArgumentParser(list(_GROUPS), allow_abbrev=False, **kwargs)
    parser.add_argument("task", choices=TASKS, help="What is learned.")
    parser.add_argument("--config", default=None, help="YAML file with the same keys; the command line wins.")
    return parser


def parse_run(argv: list[str], parser: HfArgumentParser | None = None) -> Run:
    """Read the flags of one run.

    Args:
        argv: command line without program and subcommand; the task comes first.
        parser: from `build_parser`; a plain one by default.

    Returns:
        The run; `output_dir` is filled in where it was not given.

    Raises:
        RunError: the config file has unknown keys, or a value is impossible.
    """
    parser = parser or build_parser()
    first = parser.parse_args(argv)
    task, config = first.task, first.config
    values = read_config(config) if config else {}
    if values.pop("task", task) != task:
        raise RunError(f"config file {config} is for another task than {task!r}; change one of them")
    values.pop("processes", None)  # says how a run was started; that is up to the launcher
    check_keys(set(values), flag_names(), config or "")
    parser.set_defaults(**{k: _as_typed(k, v) for k, v in values.items()})
    defaults = _METHOD_DEFAULTS.get(parser.parse_args(argv).method, {})
    parser.set_defaults(**{k: v for k, v in defaults.items() if k not in values})
    final = parser.parse_args(argv)
    if final.output_dir is None:
        final.output_dir = f"runs/{task}-{final.method}"
    given = {k: v for k, v in vars(final).items() if k not in ("config", "task")}
    model, data, method, training = (_build(group, given) for group in _GROUPS)
    resolved = {"task": task, **changed(given, build_parser()), "method": final.method, "seed": final.seed}
    if training.world_size > 1:  # another number would mean another batch, and another run
        resolved["processes"] = training.world_size
    run = Run(task, model, data, method, training, resolved)
    _check(run)
    return run


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a config file.

    Args:
        path: YAML file, a mapping of flags to values, optionally with `task`.

    Returns:
        The mapping.

    Raises:
        RunError: it cannot be read or is not a mapping.
    """
    yaml = require("yaml")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"config file {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"config file {path} must hold 'flag: value' lines; got {type(values).__name__}")
    return values


def check_keys(keys: set[str], known: set[str], path: str | Path) -> None:
    """Refuse flags that do not exist.

    Args:
        keys: keys of the file.
        known: keys that exist.
        path: the file, for the message.

    Raises:
        RunError: a key is unknown; the nearest known one is named.
    """
    for key in sorted(keys - known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RunError(f"config file {path}: unknown key {key!r}{hint}")


def flag_names() -> set[str]:
    """Names of all flags of a run."""
    return {f.name for group in _GROUPS for f in dataclasses.fields(group) if f.init}


def _as_typed(key: str, value: Any) -> Any:
    """A value of a config file as argparse would get it from the command line, where it is text."""
    if key == "fsdp":  # a flag without a value; as text, TrainingArguments takes it for the older list of options
        return value
    return str(value) if isinstance(value, (int, float)) else value


def _build(group: type, values: dict[str, Any]) -> Any:
    names = {f.name for f in dataclasses.fields(group) if f.init}
    try:
        return group(**{k: v for k, v in values.items() if k in names})
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(f"these flags do not go together: {error}") from None


def changed(values: dict[str, Any], parser: HfArgumentParser) -> dict[str, Any]:
    """What makes a run: values that differ from their default, as plain YAML types.

    Args:
        values: all flags.
        parser: with the defaults.

    Returns:
        Some of them, without those that do not change the result.
    """
    found = {k: v for k, v in values.items() if k not in _NOT_SETTINGS and v != parser.get_default(k)}
    return {k: v.value if isinstance(v, Enum) else v for k, v in found.items()}


def _check(run: Run) -> None:
    """Raise on values that argparse does not see (config files) or cannot judge."""
    for arguments in (run.model, run.data, run.method):
        for field in dataclasses.fields(arguments):
            choices = field.metadata.get("choices")
            value = getattr(arguments, field.name)
            if choices and value not in choices:
                raise RunError(f"{field.name} must be one of {', '.join(choices)}; got {value!r}")
    if not run.model.model_name_or_path:
        raise RunError("--model_name_or_path is needed, for example: --model_name_or_path minilm")
    if not run.data.dataset and not run.data.train_file:
        raise RunError("--dataset or --train_file is needed, for example: --dataset bbc-news")
    if run.method.method == "linear" and run.task == "causal-lm":
        raise RunError("--method linear trains a new head on frozen features; causal-lm has no new head. Use coeff")
    if run.method.head_start == "probe" and run.task == "causal-lm":
        raise RunError("--head_start probe is for new heads on frozen features; causal-lm has none. Leave it out")
    if not 0 < run.data.holdout_fraction < 1:
        raise RunError(f"--holdout_fraction must lie between 0 and 1; got {run.data.holdout_fraction}")
    for name in ("train_samples_per_class", "max_train_samples", "max_eval_samples"):
        value = getattr(run.data, name)
        if value is not None and value < 1:
            raise RunError(f"--{name} must be at least 1; got {value}")
