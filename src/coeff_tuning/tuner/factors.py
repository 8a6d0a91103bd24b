"""Projections of the rank that heads have, closest to what coefficients ask for: the algebra of the approximate merge.

Map i feeds every head h with coeff[h, i] != 0, so that what it carries from value input to output is the product

    P[i] = sum_h coeff[h, i] Wo[h] Wv[g(h)]        # (D, X)

The maps of one group share a value projection of `Ev` rows: their stacked products are replaced by the closest ones of
rank `Ev`, in the mean over value inputs if their second moment C is given, else over all directions alike:

    min sum_i || (P[i] - Wo'[i] Wv'[g(i)]) C^(1/2) ||^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from coeff_tuning.binders.projections import Place, bias_of, weight_of
from coeff_tuning.tuner.groups import same_value_head
from coeff_tuning.tuner.merge import Merge, fold

RIDGE = 1e-6  # added to C, as a part of its mean eigenvalue, so that few inputs leave it invertible


@torch.no_grad()
def merge_module(merge: Merge, second: Tensor | None) -> float:
    """Write the merged projections of one module and measure them.

    Args:
        merge: its matrix and projections, checked.
        second: second moment of its value inputs, `(X, X)`. None: the identity.

    Returns:
        `sqrt(sum_i ||dP[i] C^(1/2)||^2 / sum_i ||P[i] C^(1/2)||^2)`, of the weights as written; 0 if nothing had to be
        approximated.
    """
    output, value, groups = merge.projections.outputs[0], merge.projections.value, merge.projections.kv_heads
    inexact = merge.inexact.any(0).unflatten(0, (groups, -1)).any(1)  # by value head
    if not inexact.any():
        for place in merge.projections.outputs:
            weight_of(place).copy_(fold(merge.coeff, weight_of(place)))
        return 0.0
    assert isinstance(value, Place)
    coeff, wo, wv = merge.coeff.to(weight_of(output).device), weight_of(output).double(), weight_of(value).double()
    second = torch.eye(wv.shape[1], dtype=wv.dtype, device=wv.device) if second is None else second
    # The value heads with an exact merge keep it; the others are overwritten.
    folded = fold(coeff * same_value_head(len(coeff), groups, coeff.device), wo)
    new_wo = folded.unflatten(1, (groups, len(coeff) // groups, -1))  # (D, Hkv, n, Ev)
    new_wv = wv.unflatten(0, (groups, -1)).clone()  # (Hkv, Ev, X)
    for g in inexact.nonzero().flatten().tolist():
        new_wo[:, g], new_wv[g] = _closest(_products(coeff, wo, wv, groups, g), second, new_wv.shape[1])
    _move_bias(coeff, value, output, inexact, wo)
    weight_of(output).copy_(new_wo.flatten(1))
    weight_of(value).copy_(new_wv.flatten(0, 1))
    return _error(coeff, (wo, wv), (weight_of(output).double(), weight_of(value).double()), groups, second)


def _products(coeff: Tensor, wo: Tensor, wv: Tensor, groups: int, g: int) -> Tensor:
    """`P[i]` of the maps of group g, `(n, D, X)`."""
    size = len(coeff) // groups
    wo_heads = wo.unflatten(1, (len(coeff), -1))  # (D, H, Ev)
    wv_heads = wv.unflatten(0, (groups, -1)).repeat_interleave(size, dim=0)  # (H, Ev, X)
    columns = coeff[:, g * size : (g + 1) * size]  # (H, n)
    products: Tensor = torch.einsum("hi,ohd->iohd", columns, wo_heads).flatten(2) @ wv_heads.flatten(0, 1)
    return products


def _closest(products: Tensor, second: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the products `(n, D, X)` of one group: `Wo'` `(D, n, rank)` and `Wv'` `(rank, X)`."""
    values, vectors = torch.linalg.eigh(second)
    values = values.clamp(min=0) + RIDGE * values.mean().clamp(min=torch.finfo(values.dtype).tiny)
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    whitened = products @ root  # (n, D, X)
    stacked = whitened.flatten(0, 1)
    basis = torch.linalg.eigh(stacked.T @ stacked).eigenvectors[:, -rank:]  # of the largest singular values
    wo, wv = (whitened @ basis).movedim(0, 1), basis.T @ inverse
    # Factors of equal size, so that neither overflows or drowns in a half type.
    scale = (wo.norm(dim=(0, 1)) / wv.norm(dim=1)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return wo / scale, wv * scale[:, None]


def _move_bias(coeff: Tensor, value: Place, output: Place, inexact: Tensor, wo: Tensor) -> None:
    """Move the value bias of the replaced value heads into the output bias: the rows of a map sum to 1."""
    value_bias, output_bias = bias_of(value), bias_of(output)
    if value_bias is None or output_bias is None:
        return
    size = len(coeff) // len(inexact)
    biases = value_bias.double().unflatten(0, (len(inexact), -1)).repeat_interleave(size, dim=0)  # (H, Ev)
    is_replaced = inexact.repeat_interleave(size).to(coeff.device)
    weight = (coeff * is_replaced).sum(1)  # of the bias of each head, from the replaced maps
    carried = torch.einsum("h,ohd,hd->o", weight, wo.unflatten(1, (len(coeff), -1)), biases)
    output_bias.copy_(output_bias.double() + carried)
    value_bias.unflatten(0, (len(inexact), -1))[inexact.to(value_bias.device)] = 0.0


def _error(coeff: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], groups: int, second: Tensor) -> float:
    identity = torch.eye(len(coeff), dtype=coeff.dtype, device=coeff.device)
    change = total = torch.zeros((), dtype=coeff.dtype, device=coeff.device)
    for g in range(groups):
        wanted = _products(coeff, *old, groups, g)
        total = total + _size(wanted, second)
        change = change + _size(_products(identity, *new, groups, g) - wanted, second)
    return float((change / total).sqrt())


def _size(products: Tensor, second: Tensor) -> Tensor:
    return ((products @ second) * products).sum()
