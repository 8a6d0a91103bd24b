"""What is compared: each method is a set of flags of `coeff-tuning train`, and the candidates that its search tries.

Every method has as many candidates as every other. In a short search these are two learning rates, a low and a high
one, and a combination takes both of its parts low, or both high; in a long one they are four, and a combination takes
two rates of each part. The probe chooses its regularisation by cross-validation instead, and variants of the
coefficients, which are compared with one another only, share one learning rate and have no search. Whether LoRA
beside coefficients was only short of the right rates is asked apart: of six candidates each, and of variants without
search. The methods `… by default` leave every flag of a method as `coeff-tuning train` has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coeff_tuning.errors import RunError

LOW = {"coeff": {"coeff_learning_rate": 1e-2}, "lora": {"lora_learning_rate": 1e-3}}
HIGH = {"coeff": {"coeff_learning_rate": 5e-2}, "lora": {"lora_learning_rate": 3e-3}}
SEARCHES = ("short", "long")
LONG = {
    "coeff": [{"coeff_learning_rate": rate} for rate in (3e-3, 1e-2, 3e-2, 5e-2)],
    "lora": [{"lora_learning_rate": rate} for rate in (3e-4, 1e-3, 2e-3, 3e-3)],
    "coeff+lora": [
        {"coeff_learning_rate": coeff, "lora_learning_rate": lora} for coeff in (1e-3, 1e-2) for lora in (1e-3, 3e-3)
    ],
}
PROBE, FROZEN = "linear", "frozen"


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        flags: of `coeff-tuning train`.
        candidates: further flags, one set for each run of the search; a single one is taken as it is.
        many: the candidates of a long search; empty: the same.
    """

    flags: dict[str, Any]
    candidates: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    many: list[dict[str, Any]] = field(default_factory=list)

    def tried(self, search: str) -> list[dict[str, Any]]:
        """What a search tries.

        Args:
            search: one of `SEARCHES`.

        Returns:
            Candidates.
        """
        return self.many if self.many and search == "long" else self.candidates


def _trained(method: str) -> Method:
    parts = [part.replace("dora", "lora") for part in method.split("+")]
    low, high = ({key: value for part in parts for key, value in of[part].items()} for of in (LOW, HIGH))
    return Method({"method": method}, [low, high], LONG["+".join(parts)])


MAIN: dict[str, Method] = {
    PROBE: Method({"method": "linear"}),
    FROZEN: Method({"method": "coeff", "num_train_epochs": 0}),  # a language model has no new head to probe with
    **{name: _trained(name) for name in ("coeff", "lora", "coeff+lora", "dora", "coeff+dora")},
}


def _variant(**flags: Any) -> Method:
    return Method({"method": "coeff", "coeff_learning_rate": 2e-2, **flags})


# Layers: the study turns these words into numbers of layers of the model.
_HALVES: dict[str, dict[str, Any]] = {
    f"{which} half of the layers": {"coeff_layers": f"{which} half"} for which in ("first", "last")
}
ABLATION: dict[str, Method] = {
    "as it is": _variant(),
    "start: residual random": _variant(coeff_init="random"),
    "start: direct identity": _variant(coeff_parameterization="direct"),
    "start: direct random": _variant(coeff_parameterization="direct", coeff_init="random"),
    **{f"dropout {value:g}": _variant(coeff_dropout=value) for value in (0.0, 0.5)},
    **{f"learning rate {value:g}": _variant(coeff_learning_rate=value) for value in (1e-3, 1e-2, 5e-2, 0.1)},
    **{f"weight decay {value:g}": _variant(coeff_weight_decay=value) for value in (0.1, 1.0)},
    **{name: _variant(**flags) for name, flags in _HALVES.items()},
}


def _both(**flags: Any) -> Method:
    return Method({"method": "coeff+lora", **LOW["coeff"], **LOW["lora"], **flags})


# Six candidates each, in the combination every rate of the coefficients with every rate of LoRA.
WIDE: dict[str, Method] = {
    "lora of 6": Method(
        {"method": "lora"}, [{"lora_learning_rate": rate} for rate in (3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)]
    ),
    "coeff+lora of 6": Method(
        {"method": "coeff+lora"},
        [
            {"coeff_learning_rate": coeff, "lora_learning_rate": lora}
            for coeff in (1e-3, 1e-2, 5e-2)
            for lora in (1e-3, 3e-3)
        ],
    ),
}
LORA_AS_IT_IS = "lora as it is"
BOTH: dict[str, Method] = {
    LORA_AS_IT_IS: Method({"method": "lora", **LOW["lora"]}),
    "both as they are": _both(),
    **{f"both: coefficients at {value:g}": _both(coeff_learning_rate=value) for value in (1e-3, 5e-2)},
    **{f"both: dropout {value:g}": _both(coeff_dropout=value) for value in (0.0, 0.5)},
    **{f"both: {name}": _both(**flags) for name, flags in _HALVES.items()},
    "both: start: residual random": _both(coeff_init="random"),
    "both: start: direct identity": _both(coeff_parameterization="direct"),
}
BY_DEFAULT: dict[str, Method] = {
    f"{name} by default": Method({"method": name}) for name in ("coeff", "lora", "coeff+lora")
}
METHODS = {**MAIN, **ABLATION, **WIDE, **BOTH, **BY_DEFAULT}
SETS = {
    "main": list(MAIN),
    "ablation": list(ABLATION),
    "combination": [*WIDE, *BOTH],
    "defaults": [PROBE, FROZEN, *BY_DEFAULT],
}


def parse(text: str) -> list[str]:
    """Read methods.

    Args:
        text: names separated by commas, or one of `SETS`.

    Returns:
        Names of `METHODS`.

    Raises:
        RunError: a name is unknown.
    """
    names = SETS.get(text) or text.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise RunError(
            f"--methods must be one of the sets {', '.join(SETS)}, or some of {', '.join(METHODS)}; got {unknown[0]!r}"
        )
    return names


def served(task: str, names: list[str]) -> list[str]:
    """The methods that a task has: a classifier has a probe, a language model is measured as it is instead.

    Args:
        task: one of `recipes.arguments.TASKS`.
        names: some of `METHODS`.

    Returns:
        Those of them.
    """
    other = PROBE if task == "causal-lm" else FROZEN
    return [name for name in names if name != other]
