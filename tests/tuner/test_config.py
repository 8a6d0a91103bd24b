"""Values of CoeffConfig are checked when it is made, and messages carry the value."""

from __future__ import annotations

from typing import Any

import pytest

from coeff_tuning import CoeffConfig


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"coeff_dropout": 1.0}, ValueError, r"\[0, 1\); got 1.0"),
        ({"coeff_dropout": -0.1}, ValueError, r"got -0.1"),
        ({"coeff_dropout": float("nan")}, ValueError, "got nan"),
        ({"coeff_dropout": "0.2"}, TypeError, "'0.2'"),
        ({"parameterization": "gated"}, ValueError, "'residual', 'direct'.*'gated'"),
        ({"init": "ones"}, ValueError, "'zero', 'identity', 'random'.*'ones'"),
        ({"init_scale": 0.0}, ValueError, "got 0.0"),
        ({"init_scale": float("inf")}, ValueError, "got inf"),
        ({"layers_to_transform": [-1]}, ValueError, r"\[-1\]"),
        ({"layers_to_transform": []}, ValueError, r"\[\]"),
        ({"layers_to_transform": [0.5]}, TypeError, r"\[0.5\]"),
        ({"layers_to_transform": True}, TypeError, "True"),
        ({"target_modules": "(("}, ValueError, r"'\(\(' is not"),
        ({"allow_unused": "yes"}, TypeError, "'yes'"),
        ({"target_modules": 3}, TypeError, "got 3"),
        ({"target_modules": []}, ValueError, "target_modules is empty"),
        ({"exclude_modules": [1]}, TypeError, r"got \[1\]"),
        ({"modules_to_save": "classifier"}, TypeError, "'classifier'"),
        ({"task_type": "NOPE"}, ValueError, "NOPE"),
    ],
)
def test_bad_values_raise(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CoeffConfig(**values)


@pytest.mark.parametrize(("parameterization", "init"), [("residual", "identity"), ("direct", "zero")])
def test_starts_away_from_the_pretrained_model_warn(parameterization: str, init: str) -> None:
    with pytest.warns(UserWarning, match="not with the pretrained model"):
        CoeffConfig(parameterization=parameterization, init=init)


def test_sets_and_tuples_become_sorted_lists() -> None:
    assert CoeffConfig(target_modules={"b", "a"}).target_modules == ["a", "b"]
