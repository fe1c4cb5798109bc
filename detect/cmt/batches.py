"""Batches for training and evaluation: groups of photos that share one shape's views, so that these are encoded once.

What is drawn depends on (seed, step, group) alone: not on the number of processes, nor on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from detect.cmt.alignment import Pairs, join_pairs
from detect.cmt.encoder import CELL_PX
from detect.cmt.found_mask import bounds_on_white
from prepare.shape_pairs import ShapePairs


@dataclass(frozen=True)
class Group:
    """Photos of one shape and the views they are compared with."""

    shape: int
    photos: tuple[int, ...]
    views: tuple[int, ...]  # distinct
    number: int  # place in the stream of groups: seeds what is drawn for it


@dataclass(frozen=True)
class Drawing:
    """What is drawn at random for a training batch; all off for evaluation."""

    flip: bool = False  # photo, views and the shape itself mirrored together, half of the time
    jitter: float = 0.0  # brightness and contrast of photos vary by up to this share
    crop_px: int = 0  # side of a random crop of the photo that is resized to its full side; 0: none
    aided: bool = False  # whether the aiding view is given
    withheld: float = 0.0  # share of the photos whose aiding view is withheld all the same
    view_pairs: int = 0  # pairs of views of each group that are aligned by ground truth
    photo_pairs: int = 0  # views that each photo is aligned with by ground truth
    points: int = 64  # of each such pair
    found_masks: float = 0.0  # share of the photos whose mask is found in the photo, as at inspection


@dataclass(frozen=True)
class Batch:
    """Pictures in [-1, 1]; `views` are those of the groups in turn, then the aiding ones."""

    photos: Float[Tensor, "batch rgb=3 px px"]
    photo_share: Float[Tensor, "batch cells"]
    views: Float[Tensor, "views rgb=3 px px"]
    view_share: Float[Tensor, "views cells"]
    view_xyz: Float[Tensor, "views cells xyz=3"]
    view_of: Int[Tensor, "batch n"]
    aided: Int[Tensor, "batch"]  # -1: none
    label: Float[Tensor, "batch"]
    box: Float[Tensor, "batch 4"]  # zeros where there is none
    has_box: Bool[Tensor, "batch"]
    change: Float[Tensor, "batch cells"]  # share of the cell that differs from the shape
    photo_index: Int[Tensor, "batch"]  # of the pack
    pairs: Pairs  # ground-truth correspondences; pictures are numbered views first, then photos

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class GroupStream:
    """An endless stream of groups: every epoch brings each photo of a split once, in an order of its own.

    A defective photo and its twin of the unmodified shape stand together.
    """

    def __init__(self, pack: ShapePairs, split: str, photos: int, views: int, seed: int) -> None:
        self.pack, self.photos, self.seed = pack, photos, seed
        self.views = min(views, pack.view_count)
        queries = pack.queries_of(split)
        shapes = np.asarray(pack["query_shape"])[queries]
        self.by_shape = {int(shape): queries[shapes == shape] for shape in np.unique(shapes)}
        self.per_epoch = sum(-(-len(own) // photos) for own in self.by_shape.values())
        self._epoch: tuple[int, list[tuple[int, tuple[int, ...]]]] | None = None

    def groups(self, first: int, count: int) -> list[Group]:
        """Groups number `first` to `first + count - 1` of the stream."""
        out = []
        for number in range(first, first + count):
            epoch, place = divmod(number, self.per_epoch)
            if self._epoch is None or self._epoch[0] != epoch:
                self._epoch = (epoch, self._shuffled(epoch))
            shape, photos = self._epoch[1][place]
            rng = np.random.default_rng((self.seed, 1, number))
            views = rng.choice(self.pack.view_count, self.views, replace=False)
            out.append(Group(shape, photos, tuple(map(int, views)), number))
        return out

    def _shuffled(self, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
        rng = np.random.default_rng((self.seed, 0, epoch))
        companions: dict[int, list[int]] = {}
        for photo, twin in enumerate(np.asarray(self.pack["query_twin"]).tolist()):
            if twin >= 0:
                companions.setdefault(photo, []).append(twin)
                companions.setdefault(twin, []).append(photo)
        groups = []
        for shape, own in self.by_shape.items():
            left, order = set(own.tolist()), []
            for photo in rng.permutation(own).tolist():
                for one in (photo, *companions.get(photo, ())):
                    if one in left:
                        left.remove(one)
                        order.append(one)
            groups += [(shape, tuple(order[i : i + self.photos])) for i in range(0, len(order), self.photos)]
        return [groups[i] for i in rng.permutation(len(groups))]


def load_batch(pack: ShapePairs, groups: Sequence[Group], drawing: Drawing, seed: int) -> Batch:
    """The pictures and labels of `groups`; every group has as many views as the others."""
    parts = [_load(pack, group, drawing, np.random.default_rng((seed, 2, group.number))) for group in groups]
    views = sum(len(part.views) for part in parts)  # ordinary ones
    ordinary, aiding = 0, views
    first_photo = views + sum(len(part.aiding) for part in parts)
    view_of, aided, pairs = [], [], []
    for part in parts:
        batch = len(part.photos)
        own = np.arange(ordinary, ordinary + len(part.views))
        view_of.append(np.tile(own, (batch, 1)))
        aided.append(np.where(part.aided >= 0, part.aided + aiding, -1))
        # The part numbered its pictures views, aiding, photos.
        numbers = np.concatenate([own, aiding + np.arange(len(part.aiding)), first_photo + np.arange(batch)])
        pairs.append(part.pairs.renumbered(torch.from_numpy(numbers)))
        ordinary, aiding, first_photo = (
            ordinary + len(part.views),
            aiding + len(part.aiding),
            first_photo + batch,
        )
    index = np.concatenate([group.photos for group in groups])
    boxes = np.concatenate([part.box for part in parts])
    has_box = np.isfinite(boxes).all(axis=1)
    return Batch(
        torch.from_numpy(np.concatenate([part.photos for part in parts])).permute(0, 3, 1, 2),
        torch.from_numpy(np.concatenate([part.photo_share for part in parts])),
        _grey(np.concatenate([part.views for part in parts] + [part.aiding for part in parts])),
        torch.from_numpy(np.concatenate([p.view_share for p in parts] + [p.aiding_share for p in parts])),
        torch.from_numpy(np.concatenate([p.view_xyz for p in parts] + [p.aiding_xyz for p in parts])),
        torch.from_numpy(np.concatenate(view_of)),
        torch.from_numpy(np.concatenate(aided)),
        torch.from_numpy(np.asarray(pack["query_label"])[index].astype(np.float32)),
        torch.from_numpy(np.where(has_box[:, None], boxes, 0).astype(np.float32)),
        torch.from_numpy(has_box),
        torch.from_numpy(np.concatenate([part.change for part in parts])),
        torch.from_numpy(index.astype(np.int64)),
        join_pairs(pairs, drawing.points),
    )


@dataclass(frozen=True)
class _Part:
    photos: np.ndarray
    photo_share: np.ndarray
    views: np.ndarray
    view_share: np.ndarray
    view_xyz: np.ndarray
    aiding: np.ndarray
    aiding_share: np.ndarray
    aiding_xyz: np.ndarray
    aided: np.ndarray
    box: np.ndarray
    change: np.ndarray
    pairs: Pairs


def _load(pack: ShapePairs, group: Group, drawing: Drawing, rng: np.random.Generator) -> _Part:
    shape, photos, views = group.shape, list(group.photos), list(group.views)
    columns, cells = pack.columns, pack.columns**2
    flip = drawing.flip and bool(rng.integers(2))
    levels = pack["queries"][photos]
    pictures = levels.astype(np.float32) / 127.5 - 1
    share = pack["query_alpha"][photos].astype(np.float32) / 255
    change = pack["query_change"][photos].astype(np.float32) / 255
    box = np.asarray(pack["query_box"][photos], dtype=np.float32)
    if drawing.jitter:
        gain = 1 + drawing.jitter * rng.uniform(-1, 1, (len(photos), 1, 1, 3)).mean(axis=3, keepdims=True)
        bend = 1 + drawing.jitter * rng.uniform(-1, 1, (len(photos), 1, 1, 1))
        # White stays white: it is what the part is cut out on.
        pictures = 1 - 2 * np.clip(gain * ((1 - pictures) / 2) ** bend, 0, 1)
        pictures = pictures.astype(np.float32)
    view_share = pack["view_alpha"][shape][views].astype(np.float32) / 255
    view_xyz = np.array(pack["view_xyz"][shape][views], dtype=np.float32)
    view_pictures = pack["views"][shape][views]
    given = np.zeros(len(photos), dtype=bool)
    if drawing.aided and pack.has_aided:
        given = rng.random(len(photos)) >= drawing.withheld
    picked = [photo for photo, g in zip(photos, given, strict=True) if g]
    aided = np.where(given, np.cumsum(given) - 1, -1)
    if picked:
        aiding = pack["aided"][picked]
        aiding_share = pack["aided_alpha"][picked].astype(np.float32) / 255
        aiding_xyz = np.array(pack["aided_xyz"][picked], dtype=np.float32)
    else:
        aiding, aiding_share, aiding_xyz = view_pictures[:0], view_share[:0], view_xyz[:0]

    seen_share = share
    if drawing.found_masks > 0:
        seen_share = share.copy()
        for number, photo in enumerate(photos):
            # Drawn for the photo alone, so that an evaluation does not hang on how photos are put together.
            if np.random.default_rng((3, group.number, photo)).random() < drawing.found_masks:
                aid = aiding_share[aided[number]] if given[number] else None
                seen_share[number] = _found_share(levels[number], aid)

    pairs = []
    pairs += _view_pairs(pack, group, drawing, view_share, rng)
    for number, photo in enumerate(photos):
        place = len(views) + len(picked) + number
        aid = len(views) + int(aided[number]) if given[number] else None
        pairs += _photo_pairs(
            pack, group, photo, place, aid, drawing, view_share, view_xyz, share[number], rng
        )
    if drawing.crop_px:
        for number in range(len(photos)):
            pictures[number], seen_share[number], change[number], box[number] = _cropped(
                pictures[number], seen_share[number], change[number], box[number], drawing.crop_px, rng
            )
    joined = join_pairs(pairs, drawing.points)
    if flip:
        pictures, view_pictures, aiding = pictures[:, :, ::-1], view_pictures[:, :, ::-1], aiding[:, :, ::-1]
        seen_share, change, view_share, aiding_share = (
            a[:, :, ::-1] for a in (seen_share, change, view_share, aiding_share)
        )
        # The mirrored shape through the mirrored camera gives the mirrored picture: its points have -x.
        mirror = np.array([-1, 1, 1], dtype=np.float32)
        view_xyz, aiding_xyz = view_xyz[:, :, ::-1] * mirror, aiding_xyz[:, :, ::-1] * mirror
        box = box * np.array([-1, 1, 1, 1], dtype=np.float32) + np.array([1, 0, 0, 0], dtype=np.float32)
        joined = joined.flipped(columns)

    def flat(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(len(array), cells, *array.shape[3:]))

    return _Part(
        np.ascontiguousarray(pictures), flat(seen_share), np.ascontiguousarray(view_pictures), flat(view_share),
        flat(view_xyz), np.ascontiguousarray(aiding), flat(aiding_share), flat(aiding_xyz), aided, box, flat(change),
        joined,
    )  # fmt: skip


def _found_share(
    picture: UInt8[np.ndarray, "px px rgb=3"], aiding: Float[np.ndarray, "rows columns"] | None
) -> Float[np.ndarray, "rows columns"]:
    """The cells' shares of the part that the photo itself shows; see `CellBounds`."""
    bounds = bounds_on_white(torch.from_numpy(picture.astype(np.float32) / 255))
    columns = picture.shape[1] // CELL_PX
    known = None if aiding is None else torch.from_numpy(np.ascontiguousarray(aiding)).flatten()
    return bounds.share(known).reshape(-1, columns).numpy()


def _grey(pictures: np.ndarray) -> Float[Tensor, "views rgb=3 px px"]:
    """Pictures of one channel three times, in [-1, 1]; those of three as they are."""
    values = torch.from_numpy(pictures).float() / 127.5 - 1
    return values[:, None].expand(-1, 3, -1, -1) if values.dim() == 3 else values.permute(0, 3, 1, 2)


def _view_pairs(
    pack: ShapePairs, group: Group, drawing: Drawing, view_share: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Cells of two views that show the same surface point: (view, other view, cells, other cells)."""
    out: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    if len(group.views) < 2 or not drawing.view_pairs:
        return out
    visible = np.asarray(pack["point_visible"][group.shape][list(group.views)])
    cells = _cells_of(np.asarray(pack["point_pxy"][group.shape][list(group.views)]), pack)
    shown = view_share.reshape(len(view_share), -1) > 0
    for _ in range(drawing.view_pairs):
        for _ in range(10):
            one, other = rng.choice(len(group.views), 2, replace=False)
            both = np.flatnonzero(visible[one] & visible[other])
            both = both[shown[one, cells[one, both]] & shown[other, cells[other, both]]]
            if len(both) >= min(32, drawing.points):
                which = rng.choice(both, min(drawing.points, len(both)), replace=False)
                out.append((int(one), int(other), cells[one, which], cells[other, which]))
                break
    return out


def _photo_pairs(
    pack: ShapePairs,
    group: Group,
    photo: int,
    place: int,
    aid: int | None,
    drawing: Drawing,
    view_share: np.ndarray,
    view_xyz: np.ndarray,
    photo_share: np.ndarray,
    rng: np.random.Generator,
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Cells of the photo and of views that show the same surface point, where the photo's camera is known.

    What surface the photo sees is taken from the aiding render; changed cells are left out.
    """
    if not drawing.photo_pairs or not pack.has_aided or not np.isfinite(pack["query_camera"][photo]).all():
        return []
    columns = pack.columns
    xyz = np.asarray(pack["aided_xyz"][photo], dtype=np.float64).reshape(-1, 3)
    shown_in_aid = np.asarray(pack["aided_alpha"][photo]).reshape(-1) > 0
    aid_cell = np.flatnonzero(np.isfinite(xyz).all(axis=1) & shown_in_aid)
    points = xyz[aid_cell]
    cell, _, inside = _project(points, pack["query_camera"][photo], pack["query_K"][photo], columns)
    unchanged = np.asarray(pack["query_change"][photo]).reshape(-1)[cell] == 0
    good = inside & unchanged & (photo_share.reshape(-1)[cell] > 0)
    cell, points, aid_cell = cell[good], points[good], aid_cell[good]
    out: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    if aid is not None and len(cell):
        which = rng.choice(len(cell), min(drawing.points, len(cell)), replace=False)
        out.append((place, aid, cell[which], aid_cell[which]))
    # A view that shares much with the photo is as likely as any other: few of the 20 do.
    for number in rng.choice(len(group.views), min(drawing.photo_pairs, len(group.views)), replace=False):
        view = group.views[number]
        K = np.asarray(pack["view_K"][group.shape, view])
        other, depth, inside = _project(points, pack["view_camera"][group.shape, view], K, columns)
        gap = np.linalg.norm(view_xyz[number].reshape(-1, 3)[other] - points, axis=1)
        seen = inside & (gap < 1.2 * CELL_PX * depth / K[0, 0]) & (view_share[number].reshape(-1)[other] > 0)
        found = np.flatnonzero(seen)
        if len(found):
            which = rng.choice(found, min(drawing.points, len(found)), replace=False)
            out.append((place, int(number), cell[which], other[which]))
    return out


def _project(
    points: np.ndarray, world_to_cam: np.ndarray, K: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell each world point falls into (0 where outside), its depth, and whether it is inside the picture."""
    in_cam = points @ world_to_cam[:3, :3].T + world_to_cam[:3, 3]
    depth = in_cam[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = (in_cam @ K.T)[:, :2] / depth[:, None]
        place = np.floor(uv / CELL_PX)
    inside = (depth > 0) & (place >= 0).all(axis=1) & (place < columns).all(axis=1)
    place = np.where(inside[:, None], place, 0).astype(np.int64)
    return place[:, 1] * columns + place[:, 0], depth, inside


def _cells_of(pxy: np.ndarray, pack: ShapePairs) -> np.ndarray:
    """Cells of pixels (row, column)."""
    rows, columns = np.moveaxis(np.clip(pxy.astype(np.int64), 0, pack.px - 1) // CELL_PX, -1, 0)
    return rows * pack.columns + columns


def _cropped(
    picture: np.ndarray,
    share: np.ndarray,
    change: np.ndarray,
    box: np.ndarray,
    crop_px: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A random square of the photo at the photo's size, with what belongs to it; the box is cut to it.

    A crop that loses the box is drawn again (as released, the sample was lost), at most 10 times; then all is kept.
    """
    px = picture.shape[0]
    for _ in range(10):
        top, left = rng.integers(0, px - crop_px + 1, 2)
        new = box
        if np.isfinite(box).all():
            low, high = (box[:2] - box[2:] / 2) * px, (box[:2] + box[2:] / 2) * px
            low = np.clip(low - [left, top], 0, crop_px) / crop_px
            high = np.clip(high - [left, top], 0, crop_px) / crop_px
            if (high <= low).any():
                continue
            new = np.concatenate([(low + high) / 2, high - low]).astype(np.float32)
        window = picture[top : top + crop_px, left : left + crop_px]
        fine = torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(fine, size=(px, px), mode="bilinear", align_corners=False)
        cells = []
        for plane in (share, change):
            whole = torch.from_numpy(plane.repeat(CELL_PX, 0).repeat(CELL_PX, 1))[None, None]
            window_of = whole[..., top : top + crop_px, left : left + crop_px]
            cells.append(torch.nn.functional.adaptive_avg_pool2d(window_of, share.shape)[0, 0].numpy())
        return resized[0].permute(1, 2, 0).numpy(), cells[0], cells[1], new
    return picture, share, change, box
