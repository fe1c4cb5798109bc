"""What a found camera leaves behind: `camera.json`, a picture to judge it by, a row of a table, a nerfstudio frame.

Matrices: `world_to_cam` in OpenCV axes, `transform_matrix` camera-to-world in OpenGL axes as nerfstudio reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pose.locate import Located
from prepare.camera import Camera, lens_keys, to_opengl_cam_to_world
from prepare.undistort import Distortion
from recon.rasterize import Render
from splatad.lens import QueryLens
from splatad.pictures import CIRCLE_COLOUR, draw_contour, side_by_side, verdict_banner
from splatad.reference_dir import LoadedReference

SQUARES = 8  # of the checkerboard along the longer side

# What `pose_document` gives, where there is no camera.
NO_CAMERA: dict[str, Any] = {
    "believed": False, "belief": 0.0, "reasons": [], "ambiguity": "", "alternatives": [], "world_to_cam": None,
    "axes": None, "transform_matrix": None, "fl_x": None, "fl_y": None, "cx": None, "cy": None, "w": None, "h": None,
    "inliers": None, "overlap": None, "in_frame": None, "sigma_deg": None, "sigma_shift_share": None,
    "agreement": None, "nearest_reference_view_deg": None, "exposure": None,
}  # fmt: skip


@dataclass(frozen=True)
class PosedPhoto:
    """A photo and the camera that was found for it."""

    name: str
    photo: Float[Tensor, "height width rgb=3"]  # as compared: scaled, over the reference's background
    located: Located | None  # None where the photo shows no part
    render: Render | None  # of the reference at the found camera
    reasons: tuple[str, ...]  # why the camera is not believed; empty where it is
    seconds: Mapping[str, float]  # by stage
    lens: QueryLens | None = None  # as it was before the camera was found

    @property
    def believed(self) -> bool:
        return self.located is not None and self.located.believed


def pose_document(located: Located) -> dict[str, Any]:
    """The camera and all that speaks for or against it, as plain values; lens and size are those of `located.camera`."""
    camera = located.camera
    return {
        "believed": located.believed,
        "belief": located.belief,
        "reasons": list(located.reasons),
        "ambiguity": located.ambiguity,
        "alternatives": [_matrices(other) for other in located.alternatives],
        **_matrices(camera),
        "axes": "world_to_cam: OpenCV (x right, y down, z forward); transform_matrix: camera-to-world, OpenGL",
        **lens_keys(camera),
        "inliers": located.inliers,
        "overlap": located.overlap,
        "in_frame": located.in_frame,
        "sigma_deg": _finite(located.sigma_deg),
        "sigma_shift_share": _finite(located.sigma_shift),
        "agreement": located.agreement,
        "nearest_reference_view_deg": located.nearest_view_deg,
        "exposure": {"gain": list(located.exposure.gain), "bias": list(located.exposure.bias)},
    }


def camera_document(
    posed: PosedPhoto, width: int, height: int, loaded: LoadedReference, version: str
) -> dict[str, Any]:
    """What goes into `camera.json`; the lens is that of the photo's own file of `width` x `height` px, upright.

    Where the reference's lens bends, the numbers of its distortion stand beside the intrinsics, as in transforms.json.
    """
    document: dict[str, Any] = {
        "format": "splatad-pose",
        "version": 1,
        "splatad": version,
        "photo": posed.name,
        "reference": loaded.reference.name,
    }
    if posed.located is None:
        document |= NO_CAMERA
    else:
        document |= pose_document(posed.located)
        document |= lens_keys(posed.located.camera.resized(width, height))
        document |= _distortion(None if posed.lens is None else posed.lens.distortion)
        document["lens"] = None if posed.lens is None else posed.lens.source
    document["reasons"] = list(posed.reasons)
    document["seconds"] = {stage: round(value, 4) for stage, value in posed.seconds.items()}
    return document


def nerfstudio_frame(camera: Camera, distortion: Distortion | None, file_path: str) -> dict[str, Any]:
    """An entry of transforms.json's `frames`, its lens included; `camera` is of the size of the file."""
    return {
        "file_path": file_path,
        **lens_keys(camera),
        "camera_model": "OPENCV",
        **_distortion(distortion),
        "transform_matrix": _matrices(camera)["transform_matrix"],
    }


def camera_picture(posed: PosedPhoto) -> Float[Tensor, "height width rgb=3"]:
    """Photo with the outline that the render has at the found camera, the render, and a checkerboard of both.

    Above them stands whether the camera is believed. Where it is right, the outline hugs the part and edges run on from
    square to square; the squares of the render carry the photo's fitted exposure.
    """
    photo = posed.photo.cpu()
    panels, captions = [photo], [posed.name[-60:]]
    if posed.located is not None and posed.render is not None:
        rgb, alpha = posed.render.rgb.cpu().clamp(0, 1), posed.render.alpha.cpu()
        exposed = posed.located.exposure.applied(rgb)
        lit = rgb + alpha[..., None] * (exposed - rgb)  # the part alone, not what is behind it
        panels = [draw_contour(photo, alpha > 0.5, CIRCLE_COLOUR), rgb, checkerboard(photo, lit)]
        captions = [
            f"{posed.name[-40:]}, outlined",
            "reference at the found camera",
            "photo and reference in turn",
        ]
    sheet = side_by_side(panels, captions)
    width = int(sheet.shape[1])
    if posed.believed:  # the part itself may be defective: no word that could be taken for a verdict on it
        banner = verdict_banner("OK", summary(posed), width, word="CAMERA FOUND")
    else:
        banner = verdict_banner("CANNOT TELL", summary(posed), width)
    return torch.cat([banner, sheet], dim=0)


def summary(posed: PosedPhoto) -> str:
    """In one line why the camera is believed or not."""
    located = posed.located
    if located is None or not located.believed:
        return posed.reasons[0]
    text = (
        f"belief {located.belief:.0%}: {located.inliers:.0%} of the part agrees, "
        f"outline {located.overlap:.0%}"
    )
    return f"{text}; {located.ambiguity}" if located.ambiguity else text


def checkerboard(
    first: Float[Tensor, "height width rgb=3"], second: Float[Tensor, "height width rgb=3"]
) -> Float[Tensor, "height width rgb=3"]:
    """Squares of two images in turn, `first` at the top left; `SQUARES` of them along the longer side."""
    height, width = first.shape[:2]
    side = max(1, math.ceil(max(height, width) / SQUARES))
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    of_second = (rows[:, None] + columns) % 2 == 1
    return torch.where(of_second[..., None], second, first)


def camera_row(posed: PosedPhoto) -> dict[str, object]:
    """One line of `cameras.csv`."""
    located = posed.located
    numbers: dict[str, object] = dict.fromkeys(
        ("belief", "inliers", "overlap", "in_frame", "sigma_deg", "nearest_reference_view_deg"), ""
    )
    if located is not None:
        values = (
            located.belief, located.inliers, located.overlap, located.in_frame, located.sigma_deg, located.nearest_view_deg,
        )  # fmt: skip
        numbers = {key: f"{value:.6g}" for key, value in zip(numbers, values, strict=True)}
    return {
        "photo": posed.name,
        "believed": posed.believed,
        **numbers,
        "alternatives": 0 if located is None else len(located.alternatives),
        "seconds": f"{sum(posed.seconds.values()):.3f}",
        "reason": summary(posed),
    }


def _matrices(camera: Camera) -> dict[str, Any]:
    world_to_cam = camera.world_to_cam.cpu()
    return {
        "world_to_cam": world_to_cam.tolist(),
        "transform_matrix": to_opengl_cam_to_world(world_to_cam.double()).tolist(),
    }


def _distortion(distortion: Distortion | None) -> dict[str, Any]:
    if distortion is None or distortion.is_trivial:
        return {}
    values = asdict(distortion)
    return {"camera_model": values.pop("model"), **values}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
