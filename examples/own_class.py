"""Coefficients in attention modules of your own, without a change to them: register the class, then use PEFT as ever.

python examples/own_class.py
"""

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning import CoeffConfig, register_attention


class Attention(nn.Module):
    """Multi-head self-attention that knows nothing of coefficients."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, width)
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads  # (B, H, L, E) each
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


def main() -> None:
    torch.manual_seed(0)
    register_attention(Attention)  # its heads are in `num_heads`, and third from last in query, key and value
    model = get_peft_model(nn.Sequential(Attention(32, 4), nn.GELU(), Attention(32, 4)), CoeffConfig(coeff_dropout=0.0))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens, target = torch.randn(8, 10, 32), torch.randn(8, 10, 32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    losses = []
    for _ in range(50):
        loss = (model(tokens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{trained} numbers trained, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
