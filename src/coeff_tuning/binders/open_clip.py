"""open_clip's own attention class, as data; most of its models use `torch.nn.MultiheadAttention` instead."""

from __future__ import annotations

from typing import Any

from coeff_tuning.binders.layouts import Layout


def _why_not(module: Any) -> str | None:
    return None if module.logit_scale is None else "with scaled_cosine=True it computes its maps by hand"


LAYOUTS = {"open_clip.transformer.Attention": Layout(why_not=_why_not)}
REFUSED = {"open_clip.modified_resnet.AttentionPool2d": "calls torch's attention function with weights of its own"}
