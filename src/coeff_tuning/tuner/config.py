"""CoeffConfig: what a user chooses about coefficients. Values are checked when the config is made."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, PeftType
from safetensors import SafetensorError, safe_open

from coeff_tuning.errors import AdapterFileError

PEFT_TYPE = "COEFF"
ALL_ATTENTION = "all-attention"
PARAMETERIZATIONS = ("residual", "direct")
INITS = ("zero", "identity", "random")
MIXINGS = ("full", "group")


@dataclass
class CoeffConfig(PeftConfig):  # type: ignore[misc]
    """Configuration of Coeff-Tuning: one learned (H, H) matrix per attention layer mixes its H attention maps.

    The matrix applied is `coeff = fixed + dropout(coeff_delta)`, where `coeff_delta` is trained and `fixed` is the
    identity (`parameterization="residual"`) or zero (`"direct"`). Row h holds the mixture used by output head h.

    Args:
        target_modules: attention modules that get coefficients. `None` or "all-attention": every attention module
            of the model that a binder serves. A list: names or ends of names, as in PEFT. Any other string: a
            regular expression that must match the whole name.
        exclude_modules: names, ends of names or a regular expression of modules to leave alone.
        layers_to_transform: keep only these layer numbers (the first number in a module's name).
        coeff_dropout: chance to zero an entry of `coeff_delta` in training, in [0, 1). One draw per forward pass,
            shared by the samples of a batch; kept entries are divided by `1 - coeff_dropout`. The paper's best is 0.2.
        parameterization: "residual" trains the difference from the identity. "direct" trains the whole matrix, so
            that weight decay and dropout act on all of it.
        init: start of `coeff_delta`: "zero", "identity" or "random" (normal, `init_scale` wide). `None` takes the one
            that starts at the pretrained model: "zero" for residual, "identity" for direct.
        init_scale: standard deviation of `init="random"`.
        mixing: "full" mixes every head with every other. "group" mixes only heads that share one value head (those of
            a group in grouped-query attention, all in multi-query attention, none else, which leaves a factor for each
            head), so that `merge_and_unload()` is exact; all other entries stay exactly zero, though they are counted
            and saved.
        modules_to_save: other modules to train and save in full, such as a new classification head.
        allow_unused: accept a forward pass that does not reach some of the adapted modules. By default the first
            forward pass raises `AdapterNotAppliedError` and names them.

    Raises:
        ValueError: a value is outside its range or not one of the known names.
        TypeError: a value has the wrong type.

    Example:
        >>> config = CoeffConfig(task_type="SEQ_CLS", coeff_dropout=0.1)
        >>> config.parameterization, config.init
        ('residual', 'zero')

    Source: Miao, Chen, Qiu, "Coeff-Tuning", CVPR 2025, https://arxiv.org/abs/2503.18337
    """

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Attention modules that get coefficients; all of them by default."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave alone: names, ends of names or a regular expression."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Keep only these layer numbers."}
    )
    coeff_dropout: float = field(default=0.2, metadata={"help": "Dropout on the entries of coeff_delta."})
    parameterization: str = field(
        default="residual", metadata={"help": "'residual': train the difference from the identity; or 'direct'."}
    )
    init: str | None = field(default=None, metadata={"help": "Start: 'zero', 'identity' or 'random'."})
    init_scale: float = field(default=0.02, metadata={"help": "Standard deviation of init='random'."})
    mixing: str = field(
        default="full", metadata={"help": "'full': mix all heads; 'group': those that share a value head."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save in full, such as a new head."}
    )
    allow_unused: bool = field(
        default=False, metadata={"help": "Accept forward passes that do not reach some adapted modules."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(PEFT_TYPE)
        self._check_names()
        self._check_numbers()
        if self.init is None:
            self.init = "zero" if self.parameterization == "residual" else "identity"
        if (self.parameterization, self.init) in {("residual", "identity"), ("direct", "zero")}:
            start = "twice the identity" if self.parameterization == "residual" else "zero"
            warnings.warn(
                f"parameterization={self.parameterization!r} with init={self.init!r} starts with coefficients that "
                f"are {start}, not with the pretrained model. Leave init out to start at the pretrained model."
            )

    def _check_names(self) -> None:
        for name, known in (
            ("parameterization", PARAMETERIZATIONS),
            ("init", (*INITS, None)),
            ("mixing", MIXINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, (set, tuple)):
                value = sorted(value)
                setattr(self, name, value)
            is_pattern = isinstance(value, str) and name != "modules_to_save"
            is_list = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
            if not (value is None or is_pattern or is_list):
                raise TypeError(
                    f"{name} must be a list of strings{' or a string' * (name != 'modules_to_save')} "
                    f"or None; got {value!r}."
                )
            if isinstance(value, str):
                try:
                    re.compile(value)
                except re.error as error:
                    raise ValueError(f"{name} must be a valid regular expression; {value!r} is not: {error}.") from None
        if not isinstance(self.allow_unused, bool):
            raise TypeError(f"allow_unused must be True or False; got {self.allow_unused!r}.")
        if self.target_modules in ([], ""):
            raise ValueError("target_modules is empty; leave it out to adapt every attention module.")

    def _check_numbers(self) -> None:
        for name in ("coeff_dropout", "init_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number; got {value!r}.")
        if not 0.0 <= self.coeff_dropout < 1.0:
            raise ValueError(f"coeff_dropout must be in [0, 1); got {self.coeff_dropout}.")
        if not (math.isfinite(self.init_scale) and self.init_scale > 0):
            raise ValueError(f"init_scale must be a positive finite number; got {self.init_scale}.")
        layers: Any = self.layers_to_transform
        if isinstance(layers, (tuple, set)):
            self.layers_to_transform = layers = sorted(layers)
        numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
        if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
            raise TypeError(f"layers_to_transform must hold whole numbers; got {layers!r}.")
        if any(n < 0 for n in numbers) or layers == []:
            raise ValueError(f"layers_to_transform must name layers from 0 up; got {layers!r}.")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> CoeffConfig:
        """Load a saved config; it or the weights beside it, missing or not to be read, raise here, by name.

        Args:
            pretrained_model_name_or_path: folder or hub id of a saved adapter.
            subfolder: folder inside it that holds the adapter.
            **kwargs: further arguments of `peft.PeftConfig.from_pretrained`.

        Returns:
            The config.

        Raises:
            AdapterFileError: the config is no JSON object, or the weights are missing, truncated or corrupt.
        """
        check_files(Path(pretrained_model_name_or_path, subfolder or ""))
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)  # type: ignore[no-any-return]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the config; an earlier one stays whole if the disk is full.

        Args:
            save_directory: folder of the adapter.
            **kwargs: further arguments of `peft.PeftConfig.save_pretrained`.
        """
        os.makedirs(save_directory, exist_ok=True)
        with TemporaryDirectory(dir=save_directory) as staging:
            super().save_pretrained(staging, **kwargs)
            os.replace(Path(staging, CONFIG_NAME), Path(save_directory, CONFIG_NAME))


def check_files(folder: Path) -> None:
    """Raise if a local adapter folder, of any PEFT method, has a config or weights that cannot be read, or no weights.

    Args:
        folder: the folder; nothing is checked where it holds no adapter (it may be the name of one on a hub).

    Raises:
        AdapterFileError: the config is no JSON object, or the weights are missing, truncated or corrupt.
    """
    if not (folder / CONFIG_NAME).is_file():
        return
    peft_type_of(folder / CONFIG_NAME)
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        if not (folder / WEIGHTS_NAME).is_file():
            raise AdapterFileError(
                f"The adapter folder {folder} must hold {SAFETENSORS_WEIGHTS_NAME}; it holds "
                f"{sorted(path.name for path in folder.iterdir())}. Copy or save the adapter again."
            )
        return
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"The adapter file {file} must be a complete safetensors file; it has {file.stat().st_size} bytes and "
            f"cannot be read ({error}). Copy or save the adapter again."
        ) from None


def peft_type_of(config: Path) -> str | None:
    """The PEFT method that a saved config is of.

    Args:
        config: the file.

    Returns:
        Its name, if the config has one.

    Raises:
        AdapterFileError: the file is not a JSON object.
    """
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("peft_type")  # type: ignore[no-any-return]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise AdapterFileError(f"{config} must be a JSON object; it cannot be read ({error}).") from None
