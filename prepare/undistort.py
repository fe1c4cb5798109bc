"""Photos resampled to the distortion-free pinhole camera of the same size and intrinsics.

With x = X/Z, y = Y/Z, r² = x² + y² a lens maps the ideal point (x, y) to the distorted (x', y'); the photo shows it at
(fl_x x' + cx, fl_y y' + cy).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from prepare.camera import Camera


@dataclass(frozen=True)
class Distortion:
    """A lens's distortion in nerfstudio's parameters.

    OPENCV: (x', y') = d (x, y) + (2 p1 x y + p2 (r² + 2x²), 2 p2 x y + p1 (r² + 2y²)),
    d = 1 + k1 r² + k2 r⁴ + k3 r⁶ + k4 r⁸.
    OPENCV_FISHEYE: (x', y') = (x, y) θ (1 + k1 θ² + k2 θ⁴ + k3 θ⁶ + k4 θ⁸) / r, θ = atan r; p1, p2 are not used.
    Source: nerfstudio `cameras/camera_utils.py` (k4 is one more power there, not OpenCV's denominator), OpenCV calib3d.
    """

    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    model: Literal["OPENCV", "OPENCV_FISHEYE"] = "OPENCV"

    @property
    def is_trivial(self) -> bool:
        """True where the photo is already a pinhole camera's; never for a fisheye, which bends even with zeros."""
        return self.model == "OPENCV" and not any((self.k1, self.k2, self.k3, self.k4, self.p1, self.p2))

    def distort(self, points: Float[Tensor, "*batch xy=2"]) -> Float[Tensor, "*batch xy=2"]:
        """Where the lens moves ideal image points, both at focal length 1 about the principal point."""
        x, y = points.unbind(-1)
        squared = x * x + y * y
        if self.model == "OPENCV_FISHEYE":
            radius = squared.sqrt().clamp_min(1e-12)
            return points * (self._distorted_radius(radius) / radius)[..., None]
        radial = 1 + squared * (self.k1 + squared * (self.k2 + squared * (self.k3 + squared * self.k4)))
        twice_xy = 2 * x * y
        return torch.stack(
            [
                x * radial + self.p1 * twice_xy + self.p2 * (squared + 2 * x * x),
                y * radial + self.p2 * twice_xy + self.p1 * (squared + 2 * y * y),
            ],
            dim=-1,
        )

    def largest_radius(self, radius: float) -> float:
        """The radius, at most `radius`, up to which the lens maps ideal points one to one.

        Beyond it the polynomial turns back, and far-off directions would be drawn into the photo a second time.
        """
        at = torch.linspace(0.0, radius, 2049, dtype=torch.float64)
        falling = self._distorted_radius(at).diff() <= 0
        return float(at[int(falling.to(torch.int64).argmax())]) if bool(falling.any()) else radius

    def _distorted_radius(self, radius: Tensor) -> Tensor:
        at = torch.atan(radius) if self.model == "OPENCV_FISHEYE" else radius
        squared = at * at
        return at * (1 + squared * (self.k1 + squared * (self.k2 + squared * (self.k3 + squared * self.k4))))


@dataclass(frozen=True)
class Undistorted:
    """A photo as a pinhole camera of the same size and intrinsics would have taken it."""

    image: Float[
        Tensor, "height width channels"
    ]  # the photo's range; border colours repeated where not `valid`
    valid: Bool[Tensor, "height width"]  # True where the pixel's centre was inside the photo


def undistort(
    image: Float[Tensor, "height width channels"],
    camera: Camera,
    distortion: Distortion,
    *,
    sampling: Literal["bicubic", "bilinear"] = "bicubic",
) -> Undistorted:
    """`image` resampled to `camera` without distortion, kept within the image's own range, and which pixels it filled.

    Bicubic keeps fine texture; masks want bilinear.
    """
    height, width = image.shape[:2]
    if distortion.is_trivial:
        return Undistorted(image, torch.ones(height, width, dtype=torch.bool, device=image.device))
    grid, valid = _sampling_grid(width, height, camera.fl_x, camera.fl_y, camera.cx, camera.cy, distortion)
    sampled = functional.grid_sample(
        image.movedim(-1, 0)[None],
        grid.to(image)[None],
        mode=sampling,
        padding_mode="border",
        align_corners=False,  # -1 and 1 are the image's edges: pixel centres at +0.5
    )
    low, high = image.amin().item(), image.amax().item()
    return Undistorted(sampled[0].movedim(0, -1).clamp(low, high).contiguous(), valid.to(image.device))


@functools.lru_cache(maxsize=2)  # the photos of a scene mostly share one lens
def _sampling_grid(
    width: int, height: int, fl_x: float, fl_y: float, cx: float, cy: float, distortion: Distortion
) -> tuple[Tensor, Tensor]:
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - cx) / fl_x
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - cy) / fl_y
    ideal = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    u, v = (distortion.distort(ideal) * ideal.new_tensor([fl_x, fl_y]) + ideal.new_tensor([cx, cy])).unbind(
        -1
    )
    radius = ideal.norm(dim=-1)
    valid = (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
    valid &= radius <= distortion.largest_radius(float(radius.max()))
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], dim=-1)
    return grid.float(), valid
