"""Coefficients in an attention module of your own: a CoeffLayer holds the numbers, coeff_attention applies them.

python examples/own_module.py
"""

import torch
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer, coeff_attention


class Attention(nn.Module):
    """Multi-head self-attention with one (H, H) coefficient matrix."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.coeff_layer = CoeffLayer(num_heads)
        self.coeff_layer.update_layer("default", CoeffConfig(coeff_dropout=0.1))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, width)
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads  # (B, H, L, E) each
        mixed = coeff_attention(query, key, value, self.coeff_layer.coeff())
        return self.out(mixed.transpose(1, 2).flatten(2))


def main() -> None:
    torch.manual_seed(0)
    attention = Attention(width=32, num_heads=4)
    for name, parameter in attention.named_parameters():
        parameter.requires_grad_("coeff_delta" in name)
    tokens, target = torch.randn(8, 10, 32), torch.randn(8, 10, 32)
    optimizer = torch.optim.AdamW([p for p in attention.parameters() if p.requires_grad], lr=5e-2)
    losses = []
    for _ in range(50):
        loss = (attention(tokens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trained = sum(p.numel() for p in attention.parameters() if p.requires_grad)
    print(f"{trained} numbers trained, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
