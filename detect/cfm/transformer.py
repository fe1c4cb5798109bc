"""The plain vision transformer (Dosovitskiy et al. 2021) of DINO and DINOv2, and the block it shares with Point-MAE.

Parameter names are the published files' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones import frozen
from prepare.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


class Attention(nn.Module):
    """Self-attention of all tokens in several heads."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, four times as wide between, for each token alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel (DINOv2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each of normalised tokens and added to them. No block is ever dropped (DropPath off)."""

    def __init__(
        self, width: int, heads: int, *, qkv_bias: bool, eps: float, layer_scale: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width)
        self.ls1: nn.Module = LayerScale(width) if layer_scale else nn.Identity()
        self.ls2: nn.Module = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A linear function of each square patch."""

    def __init__(self, patch_px: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)

    def forward(self, batch: Float[Tensor, "batch rgb=3 h w"]) -> Float[Tensor, "batch width rows columns"]:
        return self.proj(batch)


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, `blocks` blocks and a last LayerNorm.

    `positions` is the side of the grid of patches that the positions were learned on; another grid takes them bicubically.
    """

    def __init__(
        self, *, patch_px: int, width: int, heads: int, blocks: int, positions: int, layer_scale: bool
    ) -> None:
        super().__init__()
        self.patch_px, self.width, self.positions = patch_px, width, positions
        self.patch_embed = PatchEmbed(patch_px, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions**2, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, eps=1e-6, layer_scale=layer_scale) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, batch: Float[Tensor, "batch rgb=3 h w"]) -> Float[Tensor, "batch rows columns width"]:
        """The normalised patch tokens of a batch whose sides are whole patches."""
        patches = self.patch_embed(batch)
        rows, columns = patches.shape[2:]
        x = torch.cat([self.cls_token.expand(len(batch), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].unflatten(1, (rows, columns))

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "1 tokens width"]:
        if rows == columns == self.positions:
            return self.pos_embed
        learned = self.pos_embed[:, 1:].unflatten(1, (self.positions, self.positions)).permute(0, 3, 1, 2)
        taken = F.interpolate(learned, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], taken.flatten(2).transpose(1, 2)], dim=1)


def load_needed(network: Network, tensors: Mapping[str, Tensor], where: str) -> Network:
    """`network` itself, frozen, with those of the tensors that it has; the others (a head, blocks cut off) are left.

    Raises: InputError where one is missing or has another shape.
    """
    for name, own in network.state_dict().items():
        if name.endswith("num_batches_tracked"):  # BatchNorm counts its training steps; nobody reads it
            continue
        if name not in tensors:
            raise InputError(
                f"weights {where}: {name} is not in the file; give the file that the registry names"
            )
        if tensors[name].shape != own.shape:
            raise InputError(
                f"weights {where}: {name} has shape {tuple(tensors[name].shape)}, {tuple(own.shape)} is wanted; "
                "give the file that the registry names"
            )
    network.load_state_dict(
        {name: tensors[name] for name in network.state_dict() if name in tensors}, strict=False
    )
    return frozen(network)


def randomised(network: Network, seed: int) -> Network:
    """`network` itself, frozen, with weights as before training: to try a pipeline and to measure time, not to judge parts."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
    for name, own in network.named_parameters():
        with torch.no_grad():
            if own.ndim > 1:
                nn.init.trunc_normal_(own, std=0.02, generator=generator)
            elif name.endswith("bias"):
                own.zero_()
            else:
                own.fill_(1.0)
    return frozen(network)
