"""Bottleneck adapters: a small network after each MLP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.studies.methods.vit import blocks_of

WIDTH = 12  # 0.23 M numbers in ViT-B; the published table has 0.234 M


class Bottleneck(nn.Module):
    """A residual bottleneck.

        out = features + up(gelu(down(features)))        # up starts at zero

    Args:
        width: number of channels.

    Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019,
    https://arxiv.org/abs/1902.00751; after the MLP only, as Pfeiffer et al., https://arxiv.org/abs/2005.00247.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, WIDTH)
        self.up = nn.Linear(WIDTH, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Apply it.

        Args:
            features: `(..., width)`.

        Returns:
            The same shape.
        """
        return features + self.up(F.gelu(self.down(features)))  # type: ignore[no-any-return]


def attach(model: nn.Module) -> list[nn.Parameter]:
    """Put a bottleneck behind the MLP of every block, before the residual connection.

    Args:
        model: a vision transformer of timm; changed in place.

    Returns:
        What is to be trained.
    """
    trained: list[nn.Parameter] = []
    for block in blocks_of(model):
        added = Bottleneck(block.mlp.fc2.out_features)
        block.mlp = nn.Sequential(block.mlp, added)
        trained += added.parameters()
    return trained
