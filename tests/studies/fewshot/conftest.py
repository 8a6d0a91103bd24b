"""The tiny models and data of the recipes."""

from tests.recipes.conftest import colours, dinov2, llama, reviews  # noqa: F401
