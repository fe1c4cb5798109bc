"""What a view from the photo's own camera adds: each cell is held against the same place of the picture and its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detect.cmt.attention import Attention, Chosen, GatedFeedForward

REACH = 1  # cells; a pose is found to within a few px
SHARPNESS = 0.1  # of the choice among neighbours: similarities are divided by it


@dataclass(frozen=True)
class InPlace:
    """What the aiding view shows at and round each cell of the photo."""

    features: Float[Tensor, "batch cells width"]  # of the neighbour that matches, softly
    agreement: Float[Tensor, "batch cells matching"]  # product of the matching vectors
    offset: Float[Tensor, "batch cells 2"]  # (down, across) of the matching neighbour, cells
    similarity: Float[Tensor, "batch cells"]  # of the best neighbour


def match_in_place(
    photo: Float[Tensor, "batch cells matching"],
    view: Float[Tensor, "batch cells matching"],
    features: Float[Tensor, "batch cells width"],
    columns: int,
) -> InPlace:
    """Each cell of the photo against the (2 REACH + 1)^2 cells about the same place of the view."""
    rows = photo.shape[1] // columns

    def shifted(x: Tensor) -> list[Tensor]:
        grid = F.pad(x.unflatten(1, (rows, columns)), (0, 0, REACH, REACH, REACH, REACH))
        return [
            grid[:, down : down + rows, across : across + columns].flatten(1, 2)
            for down in range(2 * REACH + 1)
            for across in range(2 * REACH + 1)
        ]

    near = shifted(view)
    similarity = torch.stack([(photo * other).sum(dim=-1) for other in near], dim=-1)
    weights = (similarity / SHARPNESS).softmax(dim=-1)

    def mean(parts: list[Tensor]) -> Tensor:
        return sum((weights[..., n, None] * part for n, part in enumerate(parts)), torch.zeros_like(parts[0]))

    steps = torch.arange(-REACH, REACH + 1, dtype=photo.dtype, device=photo.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)
    return InPlace(mean(shifted(features)), photo * mean(near), weights @ offsets, similarity.amax(dim=-1))


class PoseAid(nn.Module):
    """What is added to the photo's cells, from the aiding view; a learned vector where the pose is withheld."""

    def __init__(self, width: int, matching: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Linear(2 * width + matching + 10, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.withheld = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        photo: Float[Tensor, "batch rows width"],
        in_place: InPlace,  # of the same rows
        photo_share: Float[Tensor, "batch rows"],
        view_share: Float[Tensor, "batch rows"],
        matched: Float[Tensor, "batch rows xyz=3"],  # where the matches in the views lie; NaN where unknown
        expected: Float[Tensor, "batch rows xyz=3"],  # where the aiding view says that the cell lies
        given: Bool[Tensor, "batch"],
    ) -> Float[Tensor, "batch rows width"]:
        residual = matched - expected
        known = residual.isfinite().all(dim=-1, keepdim=True)
        residual = torch.where(known, residual, 0.0)
        numbers = [
            in_place.offset,
            in_place.similarity[..., None],
            photo_share[..., None],
            view_share[..., None],
            known.to(residual),
            4 * residual,
            4 * residual.norm(dim=-1, keepdim=True),
        ]
        mixed = self.mix(
            torch.cat(
                [in_place.features, photo - in_place.features, in_place.agreement * 4, *numbers], dim=-1
            )
        )
        return torch.where(given[:, None, None], mixed, self.withheld)


class Explained(nn.Module):
    """View to photo: each cell of one view looks for itself in the photo. What finds nothing has no counterpart there.

    The other direction cannot show a part that is missing: the photo has no cell to ask for it.
    """

    def __init__(self, width: int, context: int, heads: int, feed_forward: int, numbers: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.cross = Attention(width, context, heads, width // heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width, feed_forward)
        self.head = nn.Sequential(nn.Linear(width + numbers, width), nn.ReLU(), nn.Linear(width, 1))
        self.nothing = nn.Parameter(torch.zeros(context))  # the first context: no cell of the photo

    def forward(
        self,
        cells: Float[Tensor, "batch rows width"],
        usable: Bool[Tensor, "batch rows"],
        context: Float[Tensor, "batch keys channels"],
        chosen: Chosen,
        numbers: Float[Tensor, "batch rows numbers"] | None = None,
    ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch width"]]:
        """Logits of "has no counterpart", and what the cells say together, those of high logits most.

        `numbers` are plain differences that each cell shows.
        """
        nothing = self.nothing.expand(len(context), 1, -1)
        context = torch.cat([nothing, context], dim=1)
        first: Int[Tensor, "batch rows 1"] = chosen.index.new_zeros(*chosen.index.shape[:2], 1)
        # "Nothing" may always be chosen, so that a row whose picks are all invalid has something to attend to.
        chosen = Chosen(
            torch.cat([first, chosen.index + 1], dim=-1),
            torch.cat([torch.zeros_like(chosen.score[..., :1]), chosen.score], dim=-1),
        )
        token = torch.zeros_like(cells[:, :1])  # the attention's row 0; not read
        x = cells + self.cross(torch.cat([token, self.norm1(cells)], dim=1), context, None, chosen)[:, 1:]
        x = x + self.feed_forward(self.norm2(x))
        told = x if numbers is None else torch.cat([x, numbers.to(x.dtype)], dim=-1)
        logits = self.head(told)[..., 0]
        weights = logits.masked_fill(~usable, -math.inf).softmax(dim=-1).nan_to_num()
        return logits, (weights[:, None] @ x)[:, 0]
