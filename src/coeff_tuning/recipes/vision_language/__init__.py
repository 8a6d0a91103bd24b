"""Image and text on BART: one model for VQA, GQA, NLVR2 and captions, with coefficients on all its attentions."""

from __future__ import annotations
