"""Coefficients under FSDP2: whole inside the forward pass of a layer that is sharded, shards outside of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard

from coeff_tuning import CoeffConfig
from coeff_tuning.errors import UnsupportedError
from coeff_tuning.tuner.checks import coeff_layers
from tests.tiny import build, output, randomise


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_shard_is_read_but_never_trained(group: None) -> None:
    model, inputs = build("bert")
    model = randomise(get_peft_model(model, CoeffConfig(coeff_dropout=0.0)))
    (_, layer), *_ = coeff_layers(model)
    expected, matrix = output(model, inputs), layer.coeff().detach()
    for module in model.get_base_model().encoder.layer:
        fully_shard(module, reshard_after_forward=True)
    torch.testing.assert_close(output(model, inputs), expected)
    torch.testing.assert_close(layer.coeff_in_eval(), matrix)
    with pytest.raises(UnsupportedError, match="must be whole where they are trained; .* a shard on 1 devices"):
        layer.coeff()
