"""The encoder of Point-MAE (Pang et al., ECCV 2022) as frozen shape features: tokens of 1,024 patches of 128 points.

Built from the description in specification 2.2 and 2.4. Points are in metres, neither centred nor scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn

from detect.cfm.transformer import Block
from prepare.errors import InputError

CENTRES = 1024
PATCH_POINTS = 128
WIDTH = 384
BLOCKS = 12
TAPS = {12: (3, 7, 11), 8: (1, 4, 7), 4: (1, 2, 3)}  # blocks, from 0, whose output is taken; else the last


@dataclass(frozen=True)
class ShapeTokens:
    """What stands for a cloud."""

    centres: Float[Tensor, "tokens xyz=3"]  # metres
    tokens: Float[Tensor, "tokens width"]


class PatchEncoder(nn.Module):
    """A patch of points about its centre to one vector: two small PointNets, one above the other."""

    def __init__(self, batch_statistics: bool) -> None:
        super().__init__()
        self.batch_statistics = batch_statistics
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, WIDTH, 1)
        )

    def forward(self, patches: Float[Tensor, "patches points xyz=3"]) -> Float[Tensor, "patches width"]:
        """The convolutions are pointwise, so they are products of matrices; what is one for a patch is computed once."""
        count, points = patches.shape[:2]
        local = self._linear(self.first_conv[0], patches.flatten(0, 1))
        local = self._linear(self.first_conv[3], F.relu_(self._normalised(self.first_conv[1], local)))
        whole = local.unflatten(0, (count, points)).amax(dim=1)
        joint = self.second_conv[0]
        assert isinstance(joint, nn.Conv1d)
        for_whole, for_local = joint.weight[:, :, 0].split(whole.shape[1], dim=1)
        hidden = F.linear(local, for_local)
        hidden.unflatten(0, (count, points)).add_(F.linear(whole, for_whole, joint.bias)[:, None])
        hidden = F.relu_(self._normalised(self.second_conv[1], hidden))
        return self._linear(self.second_conv[3], hidden).unflatten(0, (count, points)).amax(dim=1)

    @staticmethod
    def _linear(layer: nn.Module, x: Float[Tensor, "rows _inputs"]) -> Float[Tensor, "rows _outputs"]:
        assert isinstance(layer, nn.Conv1d)
        return F.linear(x, layer.weight[:, :, 0], layer.bias)

    def _normalised(
        self, layer: nn.Module, x: Float[Tensor, "rows channels"]
    ) -> Float[Tensor, "rows channels"]:
        assert isinstance(layer, nn.BatchNorm1d)
        if self.batch_statistics:
            return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        return F.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
        )


class _Blocks(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(WIDTH, 6, qkv_bias=False, eps=1e-5) for _ in range(blocks))


class PointMAE(nn.Module):
    """The encoder, `blocks` of its 12 blocks deep (specification 3, "layer pruning").

    `batch_statistics`: BatchNorm takes mean and variance of the very cloud it sees, as the published extractor does, which
    nobody put in eval mode. With the running ones a cloud in metres gives patches that are all alike (specification 2.4).
    DropPath is off, where the published results had it on.
    """

    def __init__(
        self,
        blocks: int = BLOCKS,
        batch_statistics: bool = True,
        centres: int = CENTRES,
        patch_points: int = PATCH_POINTS,
    ) -> None:
        super().__init__()
        self.centres, self.patch_points = centres, patch_points
        self.encoder = PatchEncoder(batch_statistics)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.blocks = _Blocks(blocks)
        self.norm = nn.LayerNorm(WIDTH)
        self.taps = TAPS.get(blocks, (blocks - 1,))

    @property
    def width(self) -> int:
        """Channels of a token: 384 for each tap."""
        return WIDTH * len(self.taps)

    @torch.no_grad()
    def forward(self, points: Float[Tensor, "points xyz=3"]) -> ShapeTokens:
        """Tokens of the patches, in the order of their finding.

        Raises: InputError for fewer points than patches.
        """
        if len(points) < self.centres:
            raise InputError(
                f"points: {self.centres} at least are wanted, got {len(points)}; take a photo with more of the part in it"
            )
        centres, patches = group(points.cpu(), self.centres, self.patch_points)
        device = self.norm.weight.device
        x = self.encoder(patches.to(device))[None]
        position = self.pos_embed(centres.to(device))[None]
        taken = []
        for number, block in enumerate(self.blocks.blocks):
            x = block(x + position)
            if number in self.taps:
                taken.append(self.norm(x)[0])
        return ShapeTokens(centres, torch.cat(taken, dim=1).cpu())


def group(
    points: Float[Tensor, "points xyz=3"], count: int = CENTRES, members: int = PATCH_POINTS
) -> tuple[Float[Tensor, "patches xyz=3"], Float[Tensor, "patches members xyz=3"]]:
    """Centres far from each other, and for each its nearest points relative to it."""
    chosen = farthest_points(points, count)
    centres = points[chosen]
    _, index = cKDTree(points.double().numpy()).query(centres.double().numpy(), k=members)
    return centres, points[torch.from_numpy(index)] - centres[:, None]


def farthest_points(points: Float[Tensor, "points xyz=3"], count: int) -> Int[Tensor, "count"]:
    """Numbers of `count` points, point 0 first, each the farthest from those before it; the first of equals.

    Points near the origin count too: the published CUDA code skips those within 3.16 cm of it.
    """
    x, y, z = points.T.contiguous().numpy()
    distance = np.full(len(x), np.inf, dtype=x.dtype)
    chosen = np.zeros(count, dtype=np.int64)
    for number in range(1, count):
        last = chosen[number - 1]
        squared = (x - x[last]) ** 2
        squared += (y - y[last]) ** 2
        squared += (z - z[last]) ** 2
        np.minimum(distance, squared, out=distance)
        chosen[number] = distance.argmax()
    return torch.from_numpy(chosen)
