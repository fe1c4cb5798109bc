"""One photo with its points in, what CFM says of it out: read, take the ground away, features, distances, verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from detect.cfm.absolute import Absolute, Region, decide, regions
from detect.cfm.checkpoint import Checkpoint
from detect.cfm.score import Distances, Fusion, ScoreConfig, anomaly_map, distances, published_image_score
from detect.cfm.stored import FeatureConfig, extract
from detect.verdict import Verdict
from prepare.camera import fit_within
from prepare.errors import InputError
from prepare.foreground_cloud import CloudSettings, border_points, keep_part
from prepare.image import resize
from prepare.organised_cloud import read_xyz
from prepare.registered import Registered, read_levels, registered_pair
from splatad.cfm_inputs import trained_class

LONGEST_PX = 1024  # of the pictures that are shown
XYZ_SUFFIXES = (".tiff", ".tif")
Ground = Literal["auto", "keep", "remove"]


@dataclass(frozen=True)
class Found:
    """A region that disagrees, on the photo and in space."""

    region: Region  # on the square of the features
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px of the shown photo, the last two exclusive
    file_box: tuple[int, int, int, int]  # the same in px of the photo's file
    centre: (
        tuple[float, float, float] | None
    )  # metres, in the sensor's frame; None where nothing was measured
    extent: float | None  # metres: diagonal of the box round its points


@dataclass(frozen=True)
class Framing:
    """How the square that features are computed on lies on the photo."""

    side: int  # px of the file: the square's side
    left: int  # px of the file from the square's left to the photo's
    top: int
    width: int  # px of the file
    height: int
    shown_width: int
    shown_height: int

    @classmethod
    def of(cls, photo: tuple[int, int], cloud: tuple[int, int]) -> Framing:
        """Of a photo and its points, both (height, width): points that were prepared are square already."""
        height, width = photo
        side = max(photo) if photo == cloud else max(cloud)
        shown_width, shown_height = fit_within(width, height, LONGEST_PX)
        return cls(side, (side - width) // 2, (side - height) // 2, width, height, shown_width, shown_height)

    def on_photo(self, square: Float[Tensor, "px px"]) -> Float[Tensor, "height width"]:
        """A map of the square as one of the shown photo (bilinear)."""
        scale = self.shown_width / self.width
        side = max(1, round(self.side * scale))
        whole = torch.nn.functional.interpolate(
            square[None, None], (side, side), mode="bilinear", align_corners=False
        )[0, 0]
        top, left = round(self.top * scale), round(self.left * scale)
        part = whole[top : top + self.shown_height, left : left + self.shown_width]
        room = (0, self.shown_width - int(part.shape[1]), 0, self.shown_height - int(part.shape[0]))
        return torch.nn.functional.pad(part[None], room, mode="replicate")[0] if any(room) else part

    def box(
        self, box: tuple[int, int, int, int], px: int, *, shown: bool
    ) -> tuple[int, int, int, int] | None:
        """A box of the square as one of the shown photo or of its file; None where it lies beside the photo."""
        scale = self.side / px
        x0, y0, x1, y1 = (edge * scale for edge in box)
        x0, x1, y0, y1 = x0 - self.left, x1 - self.left, y0 - self.top, y1 - self.top
        width, height = self.width, self.height
        if shown:
            factor = self.shown_width / self.width
            x0, x1, y0, y1 = x0 * factor, x1 * factor, y0 * factor, y1 * factor
            width, height = self.shown_width, self.shown_height
        left, top, right, bottom = (
            max(0, int(x0)),
            max(0, int(y0)),
            min(width, round(x1)),
            min(height, round(y1)),
        )
        return (left, top, right, bottom) if right > left and bottom > top else None


@dataclass(frozen=True)
class CfmInspection:
    """What was said of one photo."""

    name: str
    points: str  # the file of the points
    verdict: Verdict
    photo: Float[Tensor, "height width rgb=3"]  # as shown
    score: float | None  # standard deviations of good photos
    published_score: float  # relative to the photo's own level
    heat: Float[Tensor, "height width"]  # z on the shown photo; of no scale, where there is none
    found: tuple[Found, ...]  # strongest first
    valid_share: float  # of the square's pixels that were compared
    ground_removed: bool
    seconds: Mapping[str, float]  # by stage


class CfmInspector:
    """Inspects photos with points by one network. A photo's result depends on that photo alone."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        features: FeatureConfig,
        fusion: Fusion,
        scale: Absolute | None,
        ground: Ground,
        device: torch.device,
    ) -> None:
        self.checkpoint, self.features, self.device = checkpoint, features, device
        self.pair, self.scale, self.ground = checkpoint.pair.to(device), scale, ground
        masked = bool(checkpoint.about.get("train", {}).get("masked", True))
        self.config = ScoreConfig(fusion, masked=masked) if scale is None else scale.score
        trained = trained_class(checkpoint)
        self.blacked = trained.get("variant") == "rgb-blacked"
        settings = trained.get("settings")
        cloud = settings.get("cloud") if isinstance(settings, dict) else None
        self.cloud = CloudSettings(**cloud) if isinstance(cloud, dict) else None

    def inspect(self, photo: Path, points: Path) -> CfmInspection:
        """The inspection of a photo and its points.

        Raises: InputError for files that cannot be read, that do not lie on each other, or that show too little.
        """
        began = time.perf_counter()
        levels, xyz = read_levels(photo), read_xyz(points)
        registered, removed = self._registered(levels, xyz, points)
        rgb = torch.from_numpy(levels).float() / 255
        framing = Framing.of(levels.shape[:2], xyz.shape[:2])
        seconds = {"read": time.perf_counter() - began}
        began = time.perf_counter()
        features = extract(self.features, registered, self.device)
        seconds["features"] = time.perf_counter() - began
        began = time.perf_counter()
        if not bool(features.valid.any()):
            raise InputError(f"{points}: no pixel has features; look at the points")
        compared = distances(self.pair, features, self.config.masked)
        compared = Distances(compared.photo.cpu(), compared.shape.cpu(), compared.valid.cpu())
        anomaly = anomaly_map(compared, self.config)
        z_map = anomaly if self.scale is None else self.scale.z_map(anomaly)
        verdict = decide(compared, z_map, self.scale)
        found: tuple[Found, ...] = ()
        if self.scale is not None and verdict.name == "NG":
            found = tuple(
                one
                for region in regions(z_map, self.scale.limit)
                if (one := _place(region, registered, framing))
            )
        seconds["compare"] = time.perf_counter() - began
        return CfmInspection(
            photo.name,
            points.name,
            verdict,
            resize(rgb, framing.shown_width, framing.shown_height),
            None if self.scale is None else float(z_map.max()),
            published_image_score(anomaly),
            framing.on_photo(z_map),
            found,
            float(compared.valid.double().mean()),
            removed,
            seconds,
        )

    def _registered(
        self,
        levels: UInt8[np.ndarray, "h w rgb=3"],
        xyz: Float[np.ndarray, "rows columns xyz=3"],
        points: Path,
    ) -> tuple[Registered, bool]:
        """Photo and points as the training saw them, and whether the ground was taken away here."""
        removed = self._has_ground(xyz)
        if removed:
            try:
                xyz = keep_part(xyz, self.cloud or CloudSettings())
            except InputError as error:
                raise InputError(f"{points}: {error}") from error
        registered = registered_pair(levels, xyz, self.features.px, str(points))
        if removed and self.blacked:
            registered = replace(registered, rgb=registered.rgb * registered.valid[..., None])
        return registered, removed

    def _has_ground(self, xyz: Float[np.ndarray, "rows columns xyz=3"]) -> bool:
        """Whether the ground is to be taken away: auto, where the training's was and points reach the photo's border."""
        if self.ground != "auto":
            return self.ground == "remove"
        if self.cloud is None:
            return False
        return len(border_points(xyz, self.cloud.border_px)) >= self.cloud.plane_points


def points_of(photo: Path, given: Sequence[Path]) -> Path:
    """The file of a photo's points: of those given, else beside it, else in a folder xyz beside its folder (as MVTec 3D-AD).

    Raises: InputError where there is none.
    """
    files = [path for path in given if not path.is_dir()]
    if len(files) == 1 and len(given) == 1:
        return files[0]
    folders = (
        [path for path in given if path.is_dir()] if given else [photo.parent, photo.parent.parent / "xyz"]
    )
    places = [path for path in files if path.stem == photo.stem]
    places += [folder / f"{photo.stem}{suffix}" for folder in folders for suffix in XYZ_SUFFIXES]
    for place in places:
        if place.is_file() and place.resolve() != photo.resolve():
            return place
    looked = ", ".join(str(folder) for folder in folders) or "the files given"
    raise InputError(
        f"{photo}: no points of it (no {photo.stem}.tiff in {looked}); name the TIFF, or a folder of them, with --xyz"
    )


def photos_alone(paths: Sequence[Path]) -> list[Path]:
    """The photos among `paths`: a TIFF that has the name of another picture beside it holds that one's points."""
    others = {path.with_suffix("") for path in paths if path.suffix.lower() not in XYZ_SUFFIXES}
    return [
        path
        for path in paths
        if path.suffix.lower() not in XYZ_SUFFIXES or path.with_suffix("") not in others
    ]


def _place(region: Region, registered: Registered, framing: Framing) -> Found | None:
    """Where a region lies; None beside the photo (in what was added to make it square)."""
    px = int(registered.xyz.shape[0])
    shown, file = framing.box(region.box, px, shown=True), framing.box(region.box, px, shown=False)
    if shown is None or file is None:
        return None
    points = registered.xyz[region.mask & registered.valid]
    if not len(points):
        return Found(region, shown, file, None, None)
    x, y, z = points.median(dim=0).values.tolist()
    extent = float((points.max(dim=0).values - points.min(dim=0).values).norm())
    return Found(region, shown, file, (x, y, z), extent)
