"""The tiny models and data of the recipes."""

from tests.recipes.conftest import bert, colours, dinov2, reviews  # noqa: F401
