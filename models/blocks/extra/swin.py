"""Transformer layers over windows of a map: Swin (Liu et al., 2021) and Swin V2 (Liu et al., 2022)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.conv import Conv

MLP_FACTOR = 4  # hidden width of the perceptron as a multiple of the width
LARGEST_LOGIT_SCALE = math.log(100)
SMALLEST_SCALE_START = math.log(10)
COORDINATE_WIDTH = 512  # hidden width of Swin V2's perceptron of positions
MASKED = -100.0
LARGEST_WINDOW = 64  # cells a side; attention takes the fourth power of it
SHORTEST = 1e-6  # norm that a query or key is divided by at least; half precision still holds it


def to_windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, H, W, C), H and W multiples of `size`, to (N * windows, size * size, C), windows in row-major order."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def from_windows(windows: torch.Tensor, size: int, height: int, width: int) -> torch.Tensor:
    """The inverse of `to_windows`."""
    x = windows.view(-1, height // size, width // size, size, size, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def offset_index(size: int) -> torch.Tensor:
    """(size^2, size^2) number of the offset between each two cells of a window, of (2 size - 1)^2 offsets."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    cells = torch.stack((rows, columns)).flatten(1)  # (2, size^2)
    offsets = cells[:, :, None] - cells[:, None, :] + size - 1  # (2, size^2, size^2), each 0 .. 2 size - 2
    return offsets[0] * (2 * size - 1) + offsets[1]


def shift_mask(height: int, width: int, size: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """(windows, size^2, size^2): 0 between cells that were close before the map was rolled by `shift`, else -100."""
    bands = []
    for side in (height, width):
        place = torch.arange(side, device=like.device)
        bands.append((place >= side - size).to(like.dtype) + (place >= side - shift).to(like.dtype))
    regions = bands[0].view(1, -1, 1, 1) * 3 + bands[1].view(1, 1, -1, 1)  # (1, H, W, 1)
    regions = to_windows(regions, size).squeeze(2)  # (windows, size^2)
    return (regions.unsqueeze(1) != regions.unsqueeze(2)).to(like.dtype) * MASKED


class WindowAttention(nn.Module):
    """Self-attention of the cells of a window, with a learned term for each head and offset between two cells."""

    relative_position_index: torch.Tensor

    def __init__(self, width: int, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        table = torch.empty((2 * size - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", offset_index(size))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attends.

        Args:
            x: (N * windows, cells, C).
            mask: (windows, cells, cells), added to the logits.
        """
        q, k, v = split_heads(self.qkv(x), self.num_heads)  # (N * windows, heads, cells, C / heads)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index]  # (cells, cells, heads)
        return self.proj(attend(logits + bias.permute(2, 0, 1), v, mask))


class ScaledCosineAttention(nn.Module):
    """Swin V2's self-attention: scaled cosines, and a term from a perceptron over logarithmic offsets."""

    relative_coords_table: torch.Tensor
    relative_position_index: torch.Tensor

    def __init__(self, width: int, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), SMALLEST_SCALE_START))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("relative_coords_table", logarithmic_offsets(size))
        self.register_buffer("relative_position_index", offset_index(size))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, COORDINATE_WIDTH), nn.ReLU(inplace=True), nn.Linear(COORDINATE_WIDTH, num_heads, bias=False)
        )
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """See `WindowAttention`."""
        biases = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        q, k, v = split_heads(F.linear(x, self.qkv.weight, biases), self.num_heads)
        scale = self.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp()
        q, k = (F.normalize(one, dim=-1, eps=SHORTEST) for one in (q, k))
        logits = q @ k.transpose(-2, -1) * scale
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)  # (offsets, heads)
        bias = 16 * table[self.relative_position_index].sigmoid()  # (cells, cells, heads)
        return self.proj(attend(logits + bias.permute(2, 0, 1), v, mask))


def split_heads(qkv: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, cells, 3 * C) to queries, keys and values, each (B, heads, cells, C / heads)."""
    batch, cells, channels = qkv.shape
    q, k, v = qkv.view(batch, cells, 3, num_heads, channels // 3 // num_heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(logits: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(logits + mask) v with the heads side by side: (B, cells, C)."""
    if mask is not None:
        windows, cells, _ = mask.shape
        masked = logits.view(-1, windows, logits.shape[1], cells, cells) + mask.unsqueeze(1)
        logits = masked.view(-1, logits.shape[1], cells, cells)
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def logarithmic_offsets(size: int) -> torch.Tensor:
    """(1, 2 size - 1, 2 size - 1, 2): signed log8(1 + d), d the offset as a share of the largest, times 8."""
    steps = torch.arange(1 - size, size, dtype=torch.float32) / max(size - 1, 1) * 8
    scaled = steps.sign() * (steps.abs() + 1).log2() / math.log2(8)
    rows, columns = torch.meshgrid(scaled, scaled, indexing="ij")
    return torch.stack((rows, columns), -1).unsqueeze(0)


class Perceptron(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_FACTOR * width)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(MLP_FACTOR * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwinTransformerLayer(nn.Module):
    """Attention within windows and a perceptron, each with a shortcut.

    Args:
        size: cells a side of a window.
        shift: by how many cells the windows are moved.
        second_version: Swin V2, which normalises behind attention and perceptron, not before.
    """

    def __init__(self, width: int, num_heads: int, size: int, shift: int, second_version: bool) -> None:
        super().__init__()
        self.size, self.shift, self.normalises_late = size, shift, second_version
        self.norm1 = nn.LayerNorm(width)
        self.attn = (ScaledCosineAttention if second_version else WindowAttention)(width, size, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C); filled up with zeros to multiples of the window's side."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.size, 0, -height % self.size))
        if self.normalises_late:
            x = x + self.norm1(self.attend(x))
            x = x + self.norm2(self.mlp(x))
        else:
            x = x + self.attend(self.norm1(x))
            x = x + self.mlp(self.norm2(x))
        return x[:, :height, :width]

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Attention within windows that are moved by `shift` cells."""
        height, width = x.shape[1:3]
        mask = None
        if self.shift:
            mask = shift_mask(height, width, self.size, self.shift, x)
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = from_windows(self.attn(to_windows(x, self.size), mask), self.size, height, width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class SwinTransformerBlock(nn.Module):
    """Layers over windows, every second one moved by half a window; a 1 x 1 Conv first where the widths differ."""

    second_version = False

    def __init__(
        self, in_channels: int, out_channels: int, num_heads: int, num_layers: int, window_size: int = 8
    ) -> None:
        super().__init__()
        if out_channels % num_heads:
            raise ValueError(f"{out_channels} channels cannot be shared by {num_heads} heads")
        if not 1 <= window_size <= LARGEST_WINDOW:
            raise ValueError(f"a window of {window_size} x {window_size} cells; at most {LARGEST_WINDOW} are possible")
        self.conv = Conv(in_channels, out_channels) if in_channels != out_channels else None
        shifts = [index % 2 * (window_size // 2) for index in range(num_layers)]
        self.blocks = nn.Sequential(
            *(SwinTransformerLayer(out_channels, num_heads, window_size, s, self.second_version) for s in shifts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv is not None:
            x = self.conv(x)
        return self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # layers work on (N, H, W, C)


class SwinTransformer2Block(SwinTransformerBlock):
    """SwinTransformerBlock with the layers of Swin V2."""

    second_version = True

    def __init__(
        self, in_channels: int, out_channels: int, num_heads: int, num_layers: int, window_size: int = 7
    ) -> None:
        super().__init__(in_channels, out_channels, num_heads, num_layers, window_size)
