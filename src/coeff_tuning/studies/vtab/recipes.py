"""How each method is trained. A method with coefficients keeps the recipe of the other one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

COEFF_DROPOUT = 0.2
# The same for every recipe; as parts of the learning rate, also of the coefficients' own.
FIRST_LEARNING_RATE = 1e-6
LAST_LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Recipe:
    """Settings of one method: AdamW, warm-up, then a cosine.

    Attributes:
        source: whose settings these are.
        learning_rate: of the method's numbers and of the head.
        weight_decay: of the same; coefficients have none.
        epochs: passes over the training images.
        batch_size: images of one step.
        warmup_epochs: of these epochs.
        drop_path: chance to skip a residual branch, growing to this over depth.
        settings: of the method itself, where a search does not choose others.
        grid: values that the search on val200 tries.
    """

    source: str
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 100
    batch_size: int = 64
    warmup_epochs: int = 10
    drop_path: float = 0.1
    settings: dict[str, float] = field(default_factory=dict)
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def candidates(self) -> Iterator[dict[str, float]]:
        """Every combination of the grid, beside the settings that it leaves alone."""
        for values in itertools.product(*self.grid.values()):
            yield {**self.settings, **dict(zip(self.grid, values, strict=True))}


_SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
BASES: dict[str, Recipe] = {
    "linear": Recipe("ours, after FacT's", drop_path=0.0),
    "lora": Recipe("NOAH", learning_rate=5e-3),
    "dora": Recipe("ours, as LoRA", learning_rate=5e-3),
    "fact": Recipe("FacT", settings={"scale": 1.0}, grid={"scale": _SCALES}),
    "ssf": Recipe("SSF", learning_rate=5e-3, weight_decay=5e-5, epochs=200, batch_size=128),
    "adapter": Recipe("RepAdapter"),
    "vpt": Recipe("ours", learning_rate=1e-2, settings={"count": 50}, grid={"count": (10, 50, 100)}),
}
_COEFF_SETTINGS = {"coeff_learning_rate": 1e-2}
_COEFF_GRID = {"coeff_learning_rate": (1e-3, 1e-2, 5e-2)}


def _with_coefficients(recipe: Recipe) -> Recipe:
    return Recipe(
        f"{recipe.source}; coefficients ours",
        recipe.learning_rate,
        recipe.weight_decay,
        recipe.epochs,
        recipe.batch_size,
        recipe.warmup_epochs,
        recipe.drop_path,
        {**recipe.settings, **_COEFF_SETTINGS},
        {**recipe.grid, **_COEFF_GRID},
    )


RECIPES: dict[str, Recipe] = {
    "linear": BASES["linear"],
    "coeff": _with_coefficients(Recipe("FacT's")),
    **{
        name: recipe
        for base in list(BASES)[1:]
        for name, recipe in ((base, BASES[base]), (f"coeff+{base}", _with_coefficients(BASES[base])))
    },
}
