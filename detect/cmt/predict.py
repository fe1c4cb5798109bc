"""One photo or many against a reference whose features are kept: score, box, map, matches and viewpoint.

Photos and views pass the network one by one, so that an answer does not depend on what else was asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from detect.cmt.checkpoint import load_network
from detect.cmt.encoder import CELL_PX
from detect.cmt.found_mask import CellBounds, bounds_on_white
from detect.cmt.model import CMT, EMPTY_LOGIT, Cells, Matches, ModelConfig
from detect.cmt.reference import ReferenceViews, check_views
from prepare.errors import InputError
from prepare.foreground import without_shadow

_EMPTY = "photo: nothing of the part is in it (an empty mask); give its mask, or a photo on a white ground"
_SMALL, _FILLED = (
    0.5,
    0.75,
)  # of the frame's side that the part fills: brought near below the one, to the other
_FINER = 3  # times the network's size, at most, at which the part is told from its shadow
_WHITE = 0.02  # a photo without alpha: how much darker than its white ground the part is


@dataclass(frozen=True)
class Photo:
    """A photo as the network sees it, and where its frame lies in the original."""

    picture: Float[Tensor, "rgb=3 px px"]  # in [-1, 1] on white
    share: Float[Tensor, "cells"]  # of each cell that the part covers, [0, 1]
    height: int  # of the original, px
    width: int  # px
    side: int  # of the square frame, px of the original's scale
    top: int  # px of the original's scale: white above its first row; negative: rows cut off
    left: int
    scale: float  # original px per px
    bounds: CellBounds | None = None  # of `share`, where shadows leave it open; None: it is known


@dataclass(frozen=True)
class EncodedReference:
    """The views' features, computed once."""

    cells: Cells
    views: ReferenceViews


@dataclass(frozen=True)
class PatchMatch:
    """A cell of the photo and the cells of the views that it was compared with, best first."""

    cell: tuple[int, int]  # row, column
    view: tuple[int, ...]  # of the reference; its number of views stands for the aiding one
    matched: tuple[tuple[int, int], ...]  # row, column in that view
    score: tuple[float, ...]  # similarity, with the geometric prior where the pose was given


@dataclass(frozen=True)
class Prediction:
    """What is said of one photo."""

    score: float  # probability of a defect, [0, 1]
    threshold: float  # of the way it was asked
    label: int  # 1: defective, the score is above the threshold
    box: (
        tuple[float, float, float, float] | None
    )  # x, y, width, height in the photo's px; None where label is 0
    patch_map: Float[Tensor, "height width"] | None  # probability of a change, on the photo's pixels
    patches: Float[Tensor, "rows columns"] | None  # the same on the cells of the network's frame
    matches: tuple[PatchMatch, ...]  # of every cell of the part
    best_view: int | None  # from whose side the photo was taken, by votes of the matches
    view_scores: tuple[float, ...]  # mean disagreement of each view, cells; smaller is nearer


def frame_photo(
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"] | None,
    px: int,
    near: bool = False,
    shadowed: bool = False,
) -> Photo:
    """`rgb` in [0, 1] on white, made square by white at its sides and resampled to `px`; the part's shape is kept.

    Without alpha the part is what differs from a white ground, which is then `shadowed`: what `alpha` holds may be shadow
    too, and the cells' shares are known between bounds alone. With `near` a part that is small in the frame (less than half
    of it) is brought near: the photos that the network learns from are filled by theirs.

    Raises: InputError where nothing of the part is left.
    """
    height, width = rgb.shape[:2]
    if alpha is None:
        alpha, shadowed = ((1 - rgb).amax(dim=-1) > _WHITE).to(rgb.dtype), True
    if not bool((alpha > 0).any()):
        raise InputError(_EMPTY)
    solid = without_shadow(rgb, alpha) if near and shadowed else alpha
    side = max(height, width)
    white = torch.where(alpha[..., None] > 0, rgb, 1.0)
    top, left = (side - height) // 2, (side - width) // 2
    if near:
        rows = (solid > 0.5).any(dim=1).nonzero()[:, 0].tolist() or [0, height - 1]
        columns = (solid > 0.5).any(dim=0).nonzero()[:, 0].tolist() or [0, width - 1]
        longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        if longest < _SMALL * side:
            side = round(longest / _FILLED)
            top, left = (side - rows[0] - rows[-1] - 1) // 2, (side - columns[0] - columns[-1] - 1) // 2
    room = (left, side - width - left, top, side - height - top)
    square = F.pad(white.permute(2, 0, 1)[None], room, value=1.0)
    cover = F.pad(alpha[None, None], room)
    bounds = None
    if shadowed:
        finer = max(1, min(_FINER, side // px))
        bounds = bounds_on_white(_resampled(square, finer * px)[0].permute(1, 2, 0), finer)
    square, cover = _resampled(square, px), _resampled(cover, px)
    share = F.avg_pool2d(cover, CELL_PX).flatten() if bounds is None else bounds.share(None)
    share = torch.where(share > 0.5 / 255, share, 0.0)
    if not bool((share > 0).any()):
        raise InputError(_EMPTY)
    picture = square[0].clamp(0, 1) * 2 - 1
    return Photo(picture, share, height, width, side, top, left, side / px, bounds)


def _resampled(picture: Float[Tensor, "1 channels side side"], px: int) -> Float[Tensor, "1 channels px px"]:
    if picture.shape[-1] == px:
        return picture
    return F.interpolate(picture, size=(px, px), mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True)
class Thresholds:
    """Probabilities above which a photo is called defective, chosen on held-out shapes."""

    plain: float = 0.5  # without the photo's pose
    aided: float = 0.5  # with a view from the photo's own camera


class Predictor:
    """A trained network and the thresholds chosen with it.

    `Predictor.from_file(path)`, then `encode` a reference once and `predict` photos (`frame_photo`) against it.
    """

    def __init__(
        self, network: CMT, thresholds: Thresholds | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        self.network, self.thresholds = network.eval().requires_grad_(False), thresholds or Thresholds()
        self.about = dict(about or {})  # what the file says of its training

    @classmethod
    def from_file(cls, path: Path, expected: ModelConfig | None = None) -> Predictor:
        """The network in `path`; a way of use for which it was not trained has the threshold 0.5.

        Raises: as `load_network`; InputError where a threshold is no probability.
        """
        network, about = load_network(path, expected)
        found = about.get("thresholds", {})
        if not isinstance(found, dict) or not set(found) <= {"plain", "aided"}:
            raise InputError(f"{path}: thresholds {found!r} are not those of plain and aided; train it again")
        for threshold in found.values():
            if not isinstance(threshold, float | int) or not 0 <= threshold <= 1:
                raise InputError(f"{path}: threshold {threshold!r} is no probability; train it again")
        return cls(network, Thresholds(**{name: float(value) for name, value in found.items()}), about)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode(self, views: ReferenceViews) -> EncodedReference:
        """The reference ready for any number of photos.

        Raises: InputError as `check_views`, or where the pictures have another size than the network's.
        """
        check_views(views, "reference")
        return EncodedReference(self._encoded(views), views)

    @torch.no_grad()
    def predict(
        self,
        photos: Sequence[Photo],
        reference: EncodedReference,
        aided: Sequence[ReferenceViews | None] | None = None,
        threshold: float | None = None,
    ) -> list[Prediction]:
        """What the network says of each photo; `aided` holds a view from its own camera (in the photo's square frame).

        `threshold` takes the place of the network's own ones.

        Raises: InputError where an aiding view is given to a network that was trained without.
        """
        if aided is not None and len(aided) != len(photos):
            raise InputError(
                f"aiding views: {len(aided)} for {len(photos)} photos; give one, or None, for each"
            )
        return [
            self._one(photo, reference, None if aided is None else aided[number], threshold)
            for number, photo in enumerate(photos)
        ]

    @torch.no_grad()
    def nearest_sides(
        self, photo: Photo, reference: EncodedReference, most: int
    ) -> list[Float[Tensor, "xyz=3"]]:
        """Directions (network's world, unit) from the part to the cameras of the `most` views nearest to the photo's, by votes
        of its matches, likeliest first."""
        own = self.network.encode(photo.picture[None].to(self.device), photo.share[None].to(self.device))
        view_of = torch.arange(len(reference.views.pictures), device=self.device)[None]
        votes = self.network.compare(own, reference.cells, view_of, None).disagreement
        if votes is None:
            return []
        poses = reference.views.world_to_cam
        order = votes[0].argsort(stable=True)[:most].tolist()
        return [F.normalize(-(poses[i, :3, :3].T @ poses[i, :3, 3]), dim=0) for i in order]

    def _encoded(self, views: ReferenceViews) -> Cells:
        cells = None
        for number in range(len(views.pictures)):
            part = slice(number, number + 1)
            one = self.network.encode(
                views.normalised()[part].to(self.device),
                views.share[part].to(self.device),
                views.xyz[part].to(self.device),
            )
            cells = one if cells is None else cells.joined(one)
        assert cells is not None
        return cells

    def _one(
        self,
        photo: Photo,
        reference: EncodedReference,
        aiding: ReferenceViews | None,
        threshold: float | None,
    ) -> Prediction:
        number = len(reference.views.pictures)
        cells, aided, share = reference.cells, None, photo.share
        if aiding is not None:
            if not self.network.config.aided:
                raise InputError("network: trained without aiding views; predict without the pose")
            check_views(aiding, "aiding view")
            cells = cells.joined(self._encoded(aiding))
            aided = torch.tensor([number], device=self.device)
            if photo.bounds is not None:
                share = photo.bounds.share(aiding.share[0])
        own = self.network.encode(photo.picture[None].to(self.device), share[None].to(self.device))
        view_of = torch.arange(number, device=self.device)[None]
        out = self.network.compare(own, cells, view_of, aided)
        columns = self.network.config.columns
        score = float(out.logit.double().sigmoid())
        if threshold is None:
            threshold = self.thresholds.plain if aided is None else self.thresholds.aided
        label = int(score > threshold)
        patches = whole = None
        if out.patch is not None:
            logits = out.patch
            if out.unexplained is not None and aided is not None:
                # The aiding view lies on the photo: what it shows without a counterpart is missing there.
                logits = torch.maximum(logits, out.unexplained)
            patches = torch.where(logits > EMPTY_LOGIT, logits.sigmoid(), 0.0).view(columns, columns).cpu()
            whole = _on_photo(patches, photo)
        votes = out.disagreement
        return Prediction(
            score,
            threshold,
            label,
            _box_on_photo(out.box[0].tolist(), photo, self.network.config.px) if label else None,
            whole,
            patches,
            self._matches(out.matches, photo, columns),
            None if votes is None else int(votes[0].argmin()),
            () if votes is None else tuple(votes[0].tolist()),
        )

    def _matches(self, matches: Matches | None, photo: Photo, columns: int) -> tuple[PatchMatch, ...]:
        if matches is None:
            return ()
        out = []
        shown = photo.share > 0
        rows: Int[Tensor, "rows"] = matches.row_cell[0].cpu()
        for row, cell in enumerate(rows.tolist()):
            if not bool(matches.row_usable[0, row]) or not bool(shown[cell]):
                continue
            valid = [n for n, score in enumerate(matches.score[0, row].tolist()) if math.isfinite(score)]
            there = matches.cell[0, row].tolist()
            out.append(
                PatchMatch(
                    (cell // columns, cell % columns),
                    tuple(int(matches.view[0, row, n]) for n in valid),
                    tuple((there[n] // columns, there[n] % columns) for n in valid),
                    tuple(float(matches.score[0, row, n]) for n in valid),
                )
            )
        return tuple(out)


def _on_photo(patches: Float[Tensor, "rows columns"], photo: Photo) -> Float[Tensor, "height width"]:
    """The cells' values on the photo's pixels, linear between the cells' middles."""
    side = photo.side
    whole = F.interpolate(
        patches[None, None].float(), size=(side, side), mode="bilinear", align_corners=False
    )
    # Back from the frame: what `frame_photo` padded is cut off, what it cut off is filled with zero.
    right, below = photo.width + photo.left - side, photo.height + photo.top - side
    return F.pad(whole, (-photo.left, right, -photo.top, below))[0, 0]


def _box_on_photo(box: Sequence[float], photo: Photo, px: int) -> tuple[float, float, float, float]:
    cx, cy, w, h = (value * px * photo.scale for value in box)
    x, y = max(0.0, cx - w / 2 - photo.left), max(0.0, cy - h / 2 - photo.top)
    right, below = (
        min(float(photo.width), cx + w / 2 - photo.left),
        min(float(photo.height), cy + h / 2 - photo.top),
    )
    return x, y, max(0.0, right - x), max(0.0, below - y)
