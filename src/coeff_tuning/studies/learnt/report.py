"""Tables of what was learnt, made of rows."""

from __future__ import annotations

from itertools import combinations
from statistics import mean

import numpy as np

from coeff_tuning.studies import tables
from coeff_tuning.studies.learnt import measures
from coeff_tuning.studies.rows import Row

LAYERS = (
    "delta = coeff - I, means over seeds. Size: root of the mean square of its entries. Off diagonal: share of the "
    "squared entries that mixes heads; rows: share that the means of the rows explain; in brackets, of random entries. "
    "Singular values: largest, and smallest. "
    "Effective rank: exp of the entropy of the singular values; in brackets, of random matrices. Row sums: of delta, "
    "smallest and largest of all seeds. Below 0, above 1: share of the entries of mixed attention maps on held-out "
    "samples, by the mean; smallest and largest entry, of all seeds."
)
SEEDS = (
    "Cosine of the deltas of two seeds, all layers as one vector: mean over pairs of seeds, then smallest and largest "
    "pair. Renumbered: the same after a random renumbering of the heads of one of the two in each layer, mean and "
    "97.5 % quantile of 1000 (mean over pairs); agreement beyond it is about which heads, not about heads in general. "
    "Diagonal, off diagonal: of these entries alone."
)
PARTS = (
    "Test accuracy in %, mean ± standard deviation, with the whole trained delta, with its diagonal or the rest alone, "
    "and without it; the head stays as it was trained beside the whole."
)
STRONGEST = (
    "The entries off the diagonal with the largest mean over seeds, by absolute value: output head h takes so much of "
    "the attention map of head g. In brackets: seeds in which the entry has the sign of the mean."
)
_STRONGEST = 5


def settings_of(rows: list[Row]) -> list[str]:
    """Names of settings in the order of their rows."""
    return list(dict.fromkeys(row["setting"] for row in rows))


def deltas(rows: list[Row], setting: str) -> np.ndarray:
    """The matrices of a setting.

    Args:
        rows: rows.
        setting: a setting.

    Returns:
        `(seeds, layers, H, H)`.
    """
    return np.array([[layer["delta"] for layer in row["layers"]] for row in rows if row["setting"] == setting])


def layers(rows: list[Row], setting: str) -> tuple[list[str], tables.Cells]:
    """A line for each layer of a setting.

    Args:
        rows: rows.
        setting: a setting.

    Returns:
        Header and cells.
    """
    own = [row for row in rows if row["setting"] == setting]
    found = deltas(rows, setting)
    heads = found.shape[-1]
    rank = f"{measures.random_effective_rank(heads):.1f}"
    lines = []
    for index, name in enumerate(layer["layer"] for layer in own[0]["layers"]):
        matrices, seen = found[:, index], [row["layers"][index] for row in own]
        spectrum = np.linalg.svd(matrices, compute_uv=False).mean(0)
        sums = matrices.sum(-1)
        lines.append(
            [
                name,
                f"{np.sqrt((matrices**2).mean()):.3f}",
                f"{100 * mean(map(measures.off_diagonal, matrices)):.0f} % ({100 - 100 / heads:.0f} %)",
                f"{100 * mean(map(measures.constant_rows, matrices)):.0f} % ({100 / heads:.0f} %)",
                f"{spectrum[0]:.2f}, {spectrum[-1]:.3f}",
                f"{mean(map(measures.effective_rank, matrices)):.1f} ({rank})",
                f"{sums.min():+.2f} to {sums.max():+.2f}",
                f"{100 * mean(layer['below'] for layer in seen):.1f} %",
                f"{100 * mean(layer['above'] for layer in seen):.2f} %",
                f"{min(layer['min'] for layer in seen):.2f} to {max(layer['max'] for layer in seen):.2f}",
            ]
        )
    header = ["layer", "size", "off diagonal", "rows", "singular values", "effective rank", "row sums"]
    return [*header, "below 0", "above 1", "entries"], lines


def agreement(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each setting: how much the seeds agree.

    Args:
        rows: rows.

    Returns:
        Header and cells.
    """
    lines = []
    for name in settings_of(rows):
        found = deltas(rows, name)
        eye = np.eye(found.shape[-1])
        cells = []
        for part in (found, found * eye, found * (1 - eye)):
            pairs = list(combinations(part, 2))
            real = [measures.cosine(*pair) for pair in pairs]
            draws = [measures.permuted_cosines(*pair) for pair in pairs]
            centre, high = (mean(float(f(draw)) for draw in draws) for f in (np.mean, _high))
            cells.append(
                f"{mean(real):+.2f} ({min(real):+.2f} to {max(real):+.2f}); renumbered {centre:+.2f}, {high:+.2f}"
            )
        lines.append([name, *cells])
    return ["setting", "all entries", "diagonal", "off diagonal"], lines


def parts(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each setting: accuracy with parts of the matrices.

    Args:
        rows: rows.

    Returns:
        Header and cells.
    """
    names = list(rows[0]["accuracy_with"])
    lines = []
    for setting in settings_of(rows):
        own = [row for row in rows if row["setting"] == setting]
        columns = [[row["accuracy"] for row in own], *([row["accuracy_with"][name] for row in own] for name in names)]
        lines.append([setting, *map(_accuracy, columns)])
    return ["setting", "whole", *names], lines


def strongest(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """Lines for the strongest entries of each setting.

    Args:
        rows: rows.

    Returns:
        Header and cells.
    """
    lines = []
    for setting in settings_of(rows):
        names = [layer["layer"] for row in rows if row["setting"] == setting for layer in row["layers"]]
        found = deltas(rows, setting) * (1 - np.eye(deltas(rows, setting).shape[-1]))
        centre = found.mean(0)
        for place in np.argsort(-np.abs(centre), axis=None)[:_STRONGEST]:
            layer, h, g = np.unravel_index(place, centre.shape)
            entries = found[:, layer, h, g]
            same = int((np.sign(entries) == np.sign(centre[layer, h, g])).sum())
            entry = f"{centre[layer, h, g]:+.3f} ({same}/{len(entries)})"
            lines.append([setting, names[layer], str(h), str(g), entry])
    return ["setting", "layer", "output head", "map of head", "entry of delta"], lines


def show(rows: list[Row]) -> None:
    """Print the tables.

    Args:
        rows: rows.
    """
    for setting in settings_of(rows):
        tables.show(f"{setting}: {LAYERS}", *layers(rows, setting))
    for caption, table in ((PARTS, parts), (SEEDS, agreement), (STRONGEST, strongest)):
        tables.show(caption, *table(rows))


def page(rows: list[Row]) -> str:
    """All tables.

    Args:
        rows: rows.

    Returns:
        Markdown.
    """
    found = []
    for setting in settings_of(rows):
        own = [row for row in rows if row["setting"] == setting]
        seeds = ", ".join(str(row["seed"]) for row in own)
        rate = own[0]["flags"]["coeff_learning_rate"]
        found += [f"**{setting}**, seeds {seeds}, learning rate {rate:g}", tables.markdown(*layers(rows, setting))]
    found.append(LAYERS)
    for caption, table in ((PARTS, parts), (SEEDS, agreement), (STRONGEST, strongest)):
        found += [tables.markdown(*table(rows)), caption]
    return "\n\n".join([*found, tables.where(rows)]) + "\n"


def _high(draws: np.ndarray) -> float:
    return float(np.quantile(draws, 0.975))


def _accuracy(found: list[float]) -> str:
    return f"{tables.spread([100 * value for value in found], '.2f')} ({len(found)})"
