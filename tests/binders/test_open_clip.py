"""open_clip: CLIP with torch's attention, CoCa with pooling, and open_clip's own attention class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from coeff_tuning import CoeffConfig
from coeff_tuning.errors import UnsupportedModelError
from tests import tiny
from tests.binders.libraries import library
from tests.binders.torch_mha_cases import fast_path, literal_by_weights

VISION = {"image_size": 16, "patch_size": 8, "layers": 2, "width": 24, "head_width": 8}
TEXT = {"context_length": 7, "vocab_size": 61, "width": 24, "heads": 3, "layers": 2}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def clip(**text: Any) -> nn.Module:
    library("open_clip")
    from open_clip.model import CLIP

    torch.manual_seed(0)
    return CLIP(embed_dim=16, vision_cfg=VISION, text_cfg={**TEXT, **text}).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 16, 16), torch.randint(1, 61, (2, 7))


def test_clip_towers() -> None:
    base_model, args = clip().requires_grad_(False), inputs()
    with torch.no_grad():
        base = base_model(*args)
    model = tiny.randomise(get_peft_model(base_model, CoeffConfig()).eval())
    ours = model(*args)
    with literal_by_weights(model), fast_path(False):
        expected = model(*args)
    for a, b, c in zip(ours[:2], expected[:2], base[:2], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
        assert (a - c).abs().max() > 1e-3
    with model.disable_adapter(), torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(*args)[:2], base[:2], strict=True))
    unloaded = model.unload()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(unloaded(*args)[:2], base[:2], strict=True))


def test_attentional_pooler_has_other_key_widths() -> None:
    library("open_clip")
    from open_clip.transformer import AttentionalPooler

    model = tiny.randomise(get_peft_model(AttentionalPooler(24, 20, n_head=3, n_queries=5), CoeffConfig()).eval())
    x = torch.randn(2, 7, 20)
    ours = model(x)
    with literal_by_weights(model):
        torch.testing.assert_close(model(x), ours, **TOLERANCE)


def test_own_attention_class() -> None:
    library("open_clip")
    from open_clip.transformer import Attention

    model = tiny.randomise(get_peft_model(nn.Sequential(Attention(24, 3, qk_norm=True)), CoeffConfig()).eval())
    x = torch.randn(2, 7, 24)
    ours = model(x)
    with torch.no_grad():
        plain = copy.deepcopy(model)
        with plain.disable_adapter():
            assert (plain(x) - ours).abs().max() > 1e-3
    vars(plain.base_model.model[0])["use_fsdpa"] = False  # its own math has bmm on four dimensions, which fails
    torch.testing.assert_close(plain(x), ours, **TOLERANCE)
    with pytest.raises(UnsupportedModelError, match="scaled_cosine=True"):
        get_peft_model(nn.Sequential(Attention(24, 3, scaled_cosine=True)), CoeffConfig())


def test_pool_of_the_residual_networks_is_refused() -> None:
    pool = pooling_network()
    with pytest.raises(UnsupportedModelError, match="AttentionPool2d, calls torch's attention function"):
        get_peft_model(pool, CoeffConfig())


def pooling_network() -> nn.Module:
    library("open_clip")
    from open_clip.modified_resnet import AttentionPool2d

    return nn.Sequential(AttentionPool2d(2, 24, 3), nn.MultiheadAttention(24, 3))
