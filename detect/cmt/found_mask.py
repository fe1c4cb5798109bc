"""Masks of photos on white ground: what shadow and what part is, the photo leaves open; the reference settles it.

A shadow that is taken for a part looks like a defect. Each cell's share of the part is known between bounds alone; where the
reference is seen from the photo's own camera, its share is taken as far as the bounds allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from detect.cmt.encoder import CELL_PX
from prepare.foreground import part_on_white


@dataclass(frozen=True)
class CellBounds:
    """Shares of a photo's cells that the part covers, in [0, 1]: at least, likely and at most."""

    least: Float[Tensor, "cells"]
    likely: Float[Tensor, "cells"]
    most: Float[Tensor, "cells"]

    def share(self, aiding: Float[Tensor, "cells"] | None) -> Float[Tensor, "cells"]:
        """The shares to compare with: the likely ones, or those of the view from the photo's own camera within the bounds."""
        return self.likely if aiding is None else torch.minimum(torch.maximum(aiding, self.least), self.most)


def bounds_on_white(rgb: Float[Tensor, "side side rgb=3"], finer: int = 1) -> CellBounds:
    """Of a picture `finer` times as wide as the network's; see `part_on_white`. A finer one leaves less of the outline open."""
    found = part_on_white(rgb)
    masks = (found.surely, found.likely, found.possibly)
    return CellBounds(*(_of_cells(mask, CELL_PX * finer) for mask in masks))


def _of_cells(mask: Bool[Tensor, "side side"], cell_px: int) -> Float[Tensor, "cells"]:
    return F.avg_pool2d(mask[None, None].float(), cell_px).flatten()
