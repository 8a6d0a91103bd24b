"""Which backend is taken, what is logged, what a refusal says."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops import Backend, list_backends, register_backend, registry
from tests.ops.attention_cases import NAMED


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_backends", dict(registry._backends))
    monkeypatch.setattr(registry, "_logged", set())
    return


def test_list_is_in_the_order_of_choice() -> None:
    assert list_backends() == ["sdpa", "native", "decode", "mqa", "chunked", "triton", "reference"]


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="None or one of sdpa, native, decode, mqa, chunked, triton, reference; got 'flash'"
    ):
        coeff_attention(**NAMED["plain"].inputs(), backend="flash")


@pytest.mark.usefixtures("fresh_registry")
def test_choice_and_refusals_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    inputs = NAMED["plain"].inputs()
    with caplog.at_level(logging.INFO, "coeff_tuning.ops"):
        for _ in range(3):
            coeff_attention(**inputs)
        coeff_attention(**inputs | {"coeff": None})
        coeff_attention(**inputs, backend="reference")
    assert [record.getMessage().strip() for record in caplog.records] == [
        "coeff_attention uses backend 'chunked'. Not sdpa: needs a frozen coeff, got one that requires grad. "
        "Not native: computes in float32, got float64. "
        "Not decode: is for at most 4 queries, got 5. "
        "Not mqa: needs one key/value head, got 3.",
        "coeff_attention uses backend 'sdpa'.",
    ]


@pytest.mark.usefixtures("fresh_registry")
def test_a_new_backend_is_preferred_by_priority_and_may_refuse() -> None:
    calls = []

    def call(request: registry.Request) -> torch.Tensor:
        calls.append(request)
        return request.query.new_full((2, 3, 5, 13), 7.0)

    def supports(request: registry.Request) -> tuple[bool, str]:
        size = request.query.shape[-1]
        return size <= 16, f"needs head size up to 16, got {size}."

    register_backend(Backend("new", priority=99, supports=supports, call=call))
    assert list_backends()[0] == "new"
    inputs = NAMED["plain"].inputs()
    assert (coeff_attention(**inputs) == 7).all()
    assert len(calls) == 1
    inputs["query"] = inputs["key"] = torch.randn(2, 3, 7, 17, dtype=torch.float64)
    assert (coeff_attention(**inputs) != 7).all()
    with pytest.raises(UnsupportedError, match="'new' cannot serve this call: needs head size up to 16, got 17"):
        coeff_attention(**inputs, backend="new")
    with pytest.raises(ValueError, match="'new' is registered already"):
        register_backend(Backend("new", priority=1, supports=supports, call=call))


@pytest.mark.usefixtures("fresh_registry")
def test_an_error_in_a_backend_is_not_a_refusal() -> None:
    def call(request: registry.Request) -> torch.Tensor:
        raise ZeroDivisionError("bug")

    register_backend(Backend("broken", priority=99, supports=lambda request: (True, ""), call=call))
    with pytest.raises(ZeroDivisionError, match="bug"):
        coeff_attention(**NAMED["plain"].inputs())


def test_no_backend_left(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = Backend("picky", 1, lambda request: (False, "needs 5 heads, got 3."), lambda request: request.query)
    monkeypatch.setattr(registry, "_backends", {"picky": refuses})
    with pytest.raises(UnsupportedError, match="picky: needs 5 heads, got 3"):
        coeff_attention(**NAMED["plain"].inputs())
