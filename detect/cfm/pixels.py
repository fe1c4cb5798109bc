"""From a grid or from tokens to pixels: a pixel's features are a weighted sum of few tokens, and the weights are kept sparse.

Pixels are numbered row by row in a square of `px` x `px`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, diags_array, kron
from scipy.spatial import cKDTree
from torch import Tensor

NEAREST = 3  # tokens that a point is interpolated from
_TINY_M2 = 1e-8  # square metres beside a squared distance: 0.1 mm, below what a sensor resolves


@dataclass(frozen=True)
class PixelWeights:
    """How much of which token each pixel is: the rows of a sparse matrix one after the other."""

    offsets: Int[Tensor, "starts"]  # where each pixel's entries begin, one more than there are pixels
    tokens: Int[Tensor, "entries"]
    weights: Float[Tensor, "entries"]

    def rows(
        self, values: Float[Tensor, "tokens width"], pixels: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows width"]:
        """The features, float32, at the pixels of these numbers; zero where a pixel has no token."""
        begin = self.offsets[pixels].long()
        count = self.offsets[pixels + 1].long() - begin
        first = count.cumsum(0) - count
        entry = torch.arange(int(count.sum()), device=values.device) + (begin - first).repeat_interleave(
            count
        )
        return F.embedding_bag(
            self.tokens[entry].long(),
            values.float(),
            first,
            mode="sum",
            per_sample_weights=self.weights[entry].float(),
        )

    def covered(self) -> Bool[Tensor, "pixels"]:
        """The pixels that have a token."""
        return self.offsets[1:] > self.offsets[:-1]

    def to(self, device: torch.device) -> PixelWeights:
        """The same on another device."""
        return PixelWeights(self.offsets.to(device), self.tokens.to(device), self.weights.to(device))


@lru_cache(maxsize=8)
def grid_weights(rows: int, columns: int, px: int) -> PixelWeights:
    """Bilinear interpolation of a grid of `rows` x `columns` tokens that covers the square (align_corners False)."""
    return _held(kron(_bilinear(rows, px), _bilinear(columns, px), format="csr"))


def nearest_tokens(
    points: Float[Tensor, "points xyz=3"], centres: Float[Tensor, "tokens xyz=3"]
) -> csr_array:
    """Each point's weights (points x tokens): its three nearest centres, by the inverse of their squared distance.

    Precondition: metres, three centres at least. Source: specification 2.3 after PointNet++ (Qi et al. 2017); distances are
    exact here, where the published code's expansion a^2 + b^2 - 2ab cannot tell centres apart below 0.2 mm.
    """
    distance, index = cKDTree(centres.double().numpy()).query(points.double().numpy(), k=NEAREST)
    weight = 1 / (np.asarray(distance) ** 2 + _TINY_M2)
    weight /= weight.sum(axis=1, keepdims=True)
    starts = np.arange(0, index.size + 1, NEAREST)
    return csr_array((weight.ravel(), index.ravel(), starts), shape=(len(points), len(centres)))


def spread(valid: Bool[Tensor, "px px"], point_weights: csr_array) -> PixelWeights:
    """Weights of all pixels from those of the points, which are the valid pixels in order, as published.

    The map, zero elsewhere, is averaged over 3 x 3 px without padding and pooled back to `px`: it grows by 1 to 2 px and
    fades at its edge, which the length of a vector bears and its direction does not. Source: specification 2.3.
    """
    return _held(_window(len(valid))[:, np.flatnonzero(valid.numpy())] @ point_weights)


def average_of_valid(valid: Bool[Tensor, "px px"], point_weights: csr_array) -> PixelWeights:
    """Weights of the valid pixels alone, each the mean over the valid ones among its 3 x 3 px.

    Nothing fades at the edge: features that have their mean removed before they are compared need that.
    """
    px = len(valid)
    inside = np.flatnonzero(valid.numpy())
    near = _box(px)[inside][:, inside]
    count = near @ np.ones(len(inside))
    mean = diags_array(1 / count) @ near @ point_weights
    place = csr_array((np.ones(len(inside)), (inside, np.arange(len(inside)))), (px * px, len(inside)))
    return _held(place @ mean)


def _held(matrix: csr_array) -> PixelWeights:
    """Half precision: weights to 3 digits; numbers of tokens in 16 bits where they fit."""
    matrix = csr_array(matrix)
    matrix.sum_duplicates()
    number = torch.int16 if matrix.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    return PixelWeights(
        torch.from_numpy(matrix.indptr.astype(np.int32)),
        torch.from_numpy(matrix.indices.astype(np.int32)).to(number),
        torch.from_numpy(matrix.data.astype(np.float32)).half(),
    )


def _bilinear(cells: int, px: int) -> csr_array:
    at = np.clip((np.arange(px) + 0.5) * cells / px - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    high = np.minimum(low + 1, cells - 1)
    column = np.stack([low, high], 1).ravel()
    weight = np.stack([1 - (at - low), at - low], 1).ravel()
    matrix = csr_array((weight, column, np.arange(0, 2 * px + 1, 2)), shape=(px, cells))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


@lru_cache(maxsize=4)
def _window(px: int) -> csr_array:
    """3 x 3 average without padding, then adaptive average pooling from px - 2 back to px; both separable."""
    inner = px - 2
    axis = np.zeros((px, px))
    for row in range(px):
        first, end = row * inner // px, -(-(row + 1) * inner // px)
        for middle in range(first, end):
            axis[row, middle : middle + 3] += 1 / (3 * (end - first))
    return csr_array(kron(csr_array(axis), csr_array(axis), format="csr"))


@lru_cache(maxsize=4)
def _box(px: int) -> csr_array:
    axis = diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(px, px))
    return csr_array(kron(axis, axis, format="csr"))
