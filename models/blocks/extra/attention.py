"""Attention over the cells or the channels of a map."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.conv import Conv

CHANNELS_OF_A_HEAD = 64
TEMPERATURE = 10000.0  # of the position code (Vaswani et al., 2017)


class CellAttention(nn.Module):
    """Multi-head self-attention of all cells, made of 1 x 1 convolutions; keys have half the values' width.

    A depth-wise convolution of the values tells positions apart.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.value_width = channels // num_heads
        self.key_width = self.value_width // 2
        self.qkv = Conv(channels, channels + 2 * self.key_width * num_heads, activation=False)
        self.proj = Conv(channels, channels, activation=False)
        self.pe = Conv(channels, channels, 3, groups=channels, activation=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).flatten(2).unflatten(1, (self.num_heads, -1))  # (N, heads, 2 * key + value, H * W)
        q, k, v = qkv.split((self.key_width, self.key_width, self.value_width), 2)
        weights = (q.transpose(2, 3) @ k * self.key_width**-0.5).softmax(-1)  # (N, heads, H * W, H * W)
        attended = (v @ weights.transpose(2, 3)).reshape(x.shape)
        return self.proj(attended + self.pe(v.reshape(x.shape)))


class PSA(nn.Module):
    """Partial self-attention (Wang et al., YOLOv10, 2024): one half of cv1's output goes through attention.

    Args:
        out_channels: the same as `in_channels`.
        expansion: width of a half as a share of `in_channels`; it needs 64 channels a head.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(in_channels * expansion)
        if in_channels != out_channels or hidden < CHANNELS_OF_A_HEAD:
            raise ValueError(
                f"PSA keeps the width and attends to at least {CHANNELS_OF_A_HEAD} channels, "
                f"found {in_channels} to {out_channels} and {hidden}"
            )
        self.cv1 = Conv(in_channels, 2 * hidden)
        self.cv2 = Conv(2 * hidden, in_channels)
        self.attn = CellAttention(hidden, hidden // CHANNELS_OF_A_HEAD)
        self.ffn = nn.Sequential(Conv(hidden, 2 * hidden), Conv(2 * hidden, hidden, activation=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, y = self.cv1(x).chunk(2, 1)
        y = y + self.attn(y)
        y = y + self.ffn(y)
        return self.cv2(torch.cat((kept, y), 1))


class AIFI(nn.Module):
    """A transformer layer over all cells of a map with sines and cosines as position code (RT-DETR, 2023).

    Args:
        hidden: width of the perceptron.
    """

    def __init__(self, in_channels: int, hidden: int = 2048, num_heads: int = 8) -> None:
        super().__init__()
        self.ma = nn.MultiheadAttention(in_channels, num_heads, batch_first=True)
        self.fc1 = nn.Linear(in_channels, hidden)
        self.fc2 = nn.Linear(hidden, in_channels)
        self.norm1 = nn.LayerNorm(in_channels)
        self.norm2 = nn.LayerNorm(in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        cells = x.flatten(2).transpose(1, 2)  # (N, H * W, C)
        placed = cells + position_code(height, width, cells)
        attended, _ = self.ma(placed, placed, cells, need_weights=False)
        cells = self.norm1(cells + attended)
        cells = self.norm2(cells + self.fc2(F.gelu(self.fc1(cells))))
        return cells.transpose(1, 2).unflatten(2, (height, width))


def position_code(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """(height * width, C): sine and cosine of the row, then of the column, each at C / 4 frequencies."""
    share = like.shape[-1] // 4
    frequencies = TEMPERATURE ** -(torch.arange(share, device=like.device, dtype=torch.float32) / share)
    number = torch.arange(height * width, device=like.device)
    angles = [place.unsqueeze(1) * frequencies for place in (number // width, number % width)]  # (H * W, C / 4)
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1).to(like.dtype)


class ChannelAttention(nn.Module):
    """Weights each channel by its average over the map (Woo et al., CBAM, 2018)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class SpatialAttention(nn.Module):
    """Weights each cell by average and maximum over its channels (Woo et al., CBAM, 2018)."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.cv1 = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # (N, 2, H, W)
        return x * self.cv1(summary).sigmoid()


class CBAM(nn.Module):
    """Channel attention, then spatial attention (Woo et al., CBAM, 2018)."""

    def __init__(self, in_channels: int, kernel: int = 7) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(in_channels)
        self.spatial_attention = SpatialAttention(kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spatial_attention(self.channel_attention(x))
