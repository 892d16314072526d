"""Transformer layers on the cells of a feature map (Dosovitskiy et al., 2020), without normalisation."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.conv import Conv


class TransformerLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each with a shortcut. Works on (cells, N, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=width, num_heads=num_heads)
        self.fc1 = nn.Linear(width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)
        x = attended + x
        return self.fc2(self.fc1(x)) + x


class TransformerBlock(nn.Module):
    """Transformer layers over all cells of a map, with a learned linear position term."""

    def __init__(self, in_channels: int, out_channels: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels) if in_channels != out_channels else None
        self.linear = nn.Linear(out_channels, out_channels)
        self.tr = nn.Sequential(*(TransformerLayer(out_channels, num_heads) for _ in range(num_layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv is not None:
            x = self.conv(x)
        batch, channels, height, width = x.shape
        cells = x.flatten(2).permute(2, 0, 1)  # (H*W, N, C)
        cells = self.tr(cells + self.linear(cells))
        return cells.permute(1, 2, 0).reshape(batch, channels, height, width)
