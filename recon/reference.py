"""A fitted part on disk: `splats.ply`, `reference.json` and nothing that runs code when it is read.

What pose and detection add (index, residual statistics, calibration) are files of their own in the same folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.atomic_write import write_json
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.undistort import Distortion
from recon.fit import Fit
from recon.gaussians import Gaussians
from recon.initial_points import Volume
from recon.ply import read_splats, write_splats
from recon.quality import ViewQuality
from recon.rasterize import RasterOptions

FORMAT_VERSION = 2
MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class ReferenceView:
    """A photo that the reference was made from."""

    name: str
    camera: Camera  # at the fitted size
    background: Float[Tensor, "rgb=3"]
    held_out: bool  # kept from the fit
    quality: ViewQuality  # of the splats' render against it


@dataclass(frozen=True)
class Reference:
    """A part as it should be."""

    name: str
    gaussians: Gaussians
    views: tuple[ReferenceView, ...]
    volume: Volume  # the cube that holds the part
    options: RasterOptions  # how its splats are to be rendered
    size_px: int  # longest side of the fitted photos
    scene: str  # folder of the prepared scene it was fitted from; may be gone
    scale_to_mm: float | None  # millimetres per world unit, None where unknown
    distortion: Distortion | None  # of the photos' lens; queries of the same lens are undistorted by it
    settings: Mapping[str, Any]  # resolved fit config, versions, seed, device

    @property
    def camera(self) -> Camera:
        """A typical camera: the first view's."""
        return self.views[0].camera

    @property
    def background(self) -> Float[Tensor, "rgb=3"]:
        """Median background of the views."""
        return torch.stack([view.background for view in self.views]).median(dim=0).values

    @property
    def distance(self) -> float:
        """Median distance of the cameras to the part's centre, world units."""
        return float(
            torch.stack([(v.camera.centre - self.volume.centre).norm() for v in self.views]).median()
        )

    @property
    def shape_only(self) -> bool:
        """Whether its colours mean nothing and photos are compared by their outline (`recon.appearance`)."""
        return self.settings.get("appearance") == "shape"

    def nearest_view_deg(self, camera: Camera) -> float:
        """Angle at the part's centre between `camera` and the nearest fitted view (any, where all are held out), degrees."""
        direction = torch.nn.functional.normalize(camera.centre - self.volume.centre, dim=0)
        views = [view for view in self.views if not view.held_out] or self.views
        others = torch.stack([view.camera.centre - self.volume.centre for view in views])
        cosine = (torch.nn.functional.normalize(others, dim=1) @ direction.to(others)).max()
        return math.degrees(math.acos(float(cosine.clamp(-1, 1))))

    @property
    def usual_view_deg(self) -> float:
        """Angle to the nearest fitted view that is usual for a new photo: half the median step between views, degrees."""
        fitted = [view.camera.centre for view in self.views if not view.held_out]
        centres = torch.stack(fitted or [view.camera.centre for view in self.views])
        directions = torch.nn.functional.normalize(centres - self.volume.centre, dim=1)
        cosines = (directions @ directions.T).fill_diagonal_(-1.0).amax(dim=1)
        return 0.5 * float(torch.rad2deg(torch.acos(cosines.clamp(-1, 1))).median())


def reference_from_fit(
    name: str,
    fit: Fit,
    options: RasterOptions,
    size_px: int,
    scene: Path,
    settings: Mapping[str, Any],
    *,
    scale_to_mm: float | None = None,
    distortion: Distortion | None = None,
) -> Reference:
    """A reference of a finished fit, in memory."""
    views = tuple(ReferenceView(v.name, v.camera, v.background, v.held_out, v.quality) for v in fit.views)
    return Reference(
        name,
        fit.gaussians,
        views,
        fit.volume,
        options,
        size_px,
        str(scene.resolve()),
        scale_to_mm,
        distortion,
        settings,
    )


def save_reference(folder: Path, reference: Reference) -> None:
    """Write `reference` into `folder`; `reference.json` comes last, so a folder that has it is whole."""
    write_splats(folder / "splats.ply", reference.gaussians)
    views = [
        {
            "name": view.name,
            "world_to_cam": view.camera.world_to_cam.tolist(),
            "fl_x": view.camera.fl_x,
            "fl_y": view.camera.fl_y,
            "cx": view.camera.cx,
            "cy": view.camera.cy,
            "w": view.camera.width,
            "h": view.camera.height,
            "background": view.background.tolist(),
            "held_out": view.held_out,
        }
        | asdict(view.quality)
        for view in reference.views
    ]
    document = {
        "format": "splatad-reference",
        "version": FORMAT_VERSION,
        "name": reference.name,
        "axes": "OpenCV, world_to_cam",
        "size_px": reference.size_px,
        "antialiased": reference.options.antialiased,
        "centre": reference.volume.centre.tolist(),
        "half_size": reference.volume.half_size,
        "scale_to_mm": reference.scale_to_mm,
        "scene": reference.scene,
        "distortion": None if reference.distortion is None else asdict(reference.distortion),
        "settings": dict(reference.settings),
        "views": views,
    }
    write_json(folder / "reference.json", document)


def load_reference(folder: Path) -> Reference:
    """The reference in `folder`.

    Raises: InputError where it is missing, unfinished, damaged or of a newer format.
    """
    path = folder / "reference.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such reference; fit one with `splatad fit`")
    if not path.is_file():
        raise InputError(
            f"{folder}: no reference.json, the fit did not finish; run the same `splatad fit` again to resume"
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path}: larger than {MAX_JSON_BYTES} bytes; fit the part again")
    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=_no_number)
        if document.get("format") != "splatad-reference" or document["version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: not a reference this version reads; update splatad or fit the part again"
            )
        views = tuple(_read_view(entry) for entry in document["views"])
        reference = Reference(
            name=str(document["name"]),
            gaussians=read_splats(folder / "splats.ply"),
            views=views,
            volume=Volume(_read_tensor(document["centre"], 3), float(document["half_size"])),
            options=RasterOptions(antialiased=bool(document["antialiased"])),
            size_px=int(document["size_px"]),
            scene=str(document["scene"]),
            scale_to_mm=None if document["scale_to_mm"] is None else float(document["scale_to_mm"]),
            distortion=None if document["distortion"] is None else Distortion(**document["distortion"]),
            settings=document["settings"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); fit the part again") from error
    if not views:
        raise InputError(f"{path}: lists no views; fit the part again")
    return reference


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}")


def _read_tensor(value: object, *shape: int) -> Tensor:
    tensor = torch.tensor(value, dtype=torch.float32)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{list(tensor.shape)} numbers where {list(shape)} belong")
    return tensor


def _read_view(entry: Mapping[str, Any]) -> ReferenceView:
    camera = Camera(
        _read_tensor(entry["world_to_cam"], 4, 4),
        float(entry["fl_x"]),
        float(entry["fl_y"]),
        float(entry["cx"]),
        float(entry["cy"]),
        int(entry["w"]),
        int(entry["h"]),
    )
    return ReferenceView(
        str(entry["name"]),
        camera,
        _read_tensor(entry["background"], 3),
        bool(entry["held_out"]),
        ViewQuality(
            psnr=float(entry["psnr"]),
            part_psnr=float(entry["part_psnr"]),
            ssim=float(entry["ssim"]),
            part_ssim=float(entry["part_ssim"]),
            lpips=None if entry["lpips"] is None else float(entry["lpips"]),
        ),
    )
