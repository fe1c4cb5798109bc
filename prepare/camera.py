"""Pinhole cameras in the project's one convention.

OpenCV axes (x right, y down, z forward), world-to-camera matrices, pixel centres at +0.5, depth = z in world units.
Converters from other conventions stand at the end of this module; nothing outside `prepare` needs them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion (images are undistorted on reading).

    A world point X projects to u = fl_x * x / z + cx, v = fl_y * y / z + cy in pixels, where
    (x, y, z) = world_to_cam[:3, :3] @ X + world_to_cam[:3, 3]; pixel (column i, row j) covers [i, i+1) x [j, j+1).
    """

    world_to_cam: Float[Tensor, "4 4"]  # rigid, OpenCV axes, world units
    fl_x: float  # focal length, px, > 0
    fl_y: float  # focal length, px, > 0
    cx: float  # principal point, px from the left edge of the image
    cy: float  # principal point, px from the top edge of the image
    width: int  # px
    height: int  # px

    @property
    def centre(self) -> Float[Tensor, "xyz=3"]:
        """The camera's position in world coordinates."""
        rotation, translation = self.world_to_cam[:3, :3], self.world_to_cam[:3, 3]
        return -rotation.T @ translation

    @property
    def forward(self) -> Float[Tensor, "xyz=3"]:
        """Unit viewing direction in world coordinates."""
        return self.world_to_cam[2, :3]

    @property
    def intrinsics(self) -> Float[Tensor, "3 3"]:
        """The matrix K of u ~ K [R | t] X, in px."""
        return torch.tensor(
            [[self.fl_x, 0.0, self.cx], [0.0, self.fl_y, self.cy], [0.0, 0.0, 1.0]],
            dtype=self.world_to_cam.dtype,
            device=self.world_to_cam.device,
        )

    def project(self, points: Float[Tensor, "n xyz=3"]) -> Float[Tensor, "n uv_depth=3"]:
        """Pixel coordinates (u, v) and depth z of world points; u, v mean nothing where z <= 0."""
        in_cam = points @ self.world_to_cam[:3, :3].T + self.world_to_cam[:3, 3]
        depth = in_cam[:, 2]
        u = self.fl_x * in_cam[:, 0] / depth + self.cx
        v = self.fl_y * in_cam[:, 1] / depth + self.cy
        return torch.stack([u, v, depth], dim=-1)

    def resized(self, width: int, height: int) -> Camera:
        """The same camera for its image resampled to `width` x `height` px (full field of view kept)."""
        x_ratio, y_ratio = width / self.width, height / self.height
        return replace(
            self,
            fl_x=self.fl_x * x_ratio,
            fl_y=self.fl_y * y_ratio,
            cx=self.cx * x_ratio,
            cy=self.cy * y_ratio,
            width=width,
            height=height,
        )

    def moved(self, world_to_cam: Float[Tensor, "4 4"]) -> Camera:
        """The same lens at another pose."""
        return replace(self, world_to_cam=world_to_cam)


def lens_keys(camera: Camera) -> dict[str, float | int]:
    """nerfstudio's keys of a pinhole lens, px."""
    return {
        "fl_x": camera.fl_x,
        "fl_y": camera.fl_y,
        "cx": camera.cx,
        "cy": camera.cy,
        "w": camera.width,
        "h": camera.height,
    }


def fit_within(width: int, height: int, longest_px: int) -> tuple[int, int]:
    """Width and height scaled down, aspect kept, so that the longer side is at most `longest_px`; never scaled up."""
    scale = min(1.0, longest_px / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def look_at(
    position: Float[Tensor, "xyz=3"],
    target: Float[Tensor, "xyz=3"],
    up: Float[Tensor, "xyz=3"],
) -> Float[Tensor, "4 4"]:
    """World-to-camera matrix of a camera at `position` that looks at `target` with image-up along `up`.

    Where the view direction is parallel to `up`, some perpendicular direction is used for it instead.
    """
    forward = torch.nn.functional.normalize(target - position, dim=0)
    right = torch.linalg.cross(forward, up)
    if right.norm() < 1e-6 * max(1.0, float(up.norm())):
        axis = torch.zeros_like(up)
        axis[int(forward.abs().argmin())] = 1.0
        right = torch.linalg.cross(forward, axis)
    right = torch.nn.functional.normalize(right, dim=0)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward])
    world_to_cam = torch.eye(4, dtype=position.dtype, device=position.device)
    world_to_cam[:3, :3] = rotation
    world_to_cam[:3, 3] = -rotation @ position
    return world_to_cam


def from_opengl_cam_to_world(cam_to_world: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """World-to-camera OpenCV matrix of a camera-to-world OpenGL one (x right, y up, z back), as nerfstudio and Blender use."""
    opencv = cam_to_world.clone()
    opencv[:3, 1:3] *= -1
    return rigid_inverse(opencv)


def to_opengl_cam_to_world(world_to_cam: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """Inverse of `from_opengl_cam_to_world`."""
    cam_to_world = rigid_inverse(world_to_cam)
    cam_to_world[:3, 1:3] *= -1
    return cam_to_world


def rigid_inverse(matrix: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """Inverse of a rigid transform, exact to rounding (transpose and rotate, no solve)."""
    inverse = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def focal_from_fov(size_px: int, fov_rad: float) -> float:
    """Focal length in px of a field of view `fov_rad` across `size_px` pixels."""
    return 0.5 * size_px / math.tan(0.5 * fov_rad)
