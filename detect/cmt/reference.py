"""The reference as CMT sees it: pictures of a shape or of splats from known cameras, with the surface points they show.

Colour, alpha and depth of a view come from one rendering. Surface points are kept in the network's world: the part inside
[-1, 1], `(x - centre) / radius` of the part's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detect.cmt.encoder import CELL_PX
from prepare.atomic_write import write_with
from prepare.camera import Camera, look_at
from prepare.errors import InputError
from prepare.mesh import Mesh
from prepare.mesh_render import MeshPainter, RendererName, surface_finder
from prepare.shape_pairs import ShapePairs
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, rasterize

Shading = Literal["grey", "colour"]
FORMAT = "splatad-cmt-views-1"
DISTANCE, FOCAL = 3.0, 355.0 / 256.0  # of BrokenChairs' views: radii, and sides of the picture
_AMBIENT, _HEAD = 0.2, 0.6  # grey shading: a surface that faces the camera shows 0.8
_SOLID = 0.5  # alpha from which a pixel shows the part


@dataclass(frozen=True)
class ReferenceViews:
    """N pictures of the part on white."""

    pictures: UInt8[Tensor, "views px px rgb=3"]
    share: Float[Tensor, "views cells"]  # of each cell that the part covers, [0, 1]
    xyz: Float[Tensor, "views cells xyz=3"]  # network's world; NaN where the cell shows none
    world_to_cam: Float[Tensor, "views 4 4"]  # network's world, float64
    intrinsics: Float[Tensor, "views 3 3"]  # px

    @property
    def px(self) -> int:
        """Side of the pictures."""
        return int(self.pictures.shape[1])

    def normalised(self) -> Float[Tensor, "views rgb=3 px px"]:
        """The pictures in [-1, 1]."""
        return self.pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def check_views(views: ReferenceViews, where: str) -> None:
    """Nothing, where the views can serve.

    Raises: InputError where there is none, one shows nothing, one has no surface points, or points lie more than half a cell
    from the cells that hold them.
    """
    if len(views.pictures) == 0:
        raise InputError(f"{where}: no views; give at least one")
    shown = (views.share > 0).any(dim=1)
    if not bool(shown.all()):
        view = int((~shown).nonzero()[0, 0])
        raise InputError(
            f"{where}: view {view} shows nothing (an empty mask); move its camera, or leave it out"
        )
    known = views.xyz.isfinite().all(dim=-1)
    if not bool(known.any(dim=1).all()):
        view = int((~known.any(dim=1)).nonzero()[0, 0])
        raise InputError(f"{where}: view {view} has no surface points (no depth); render it with depth")
    off = registration_error(views)
    if off > CELL_PX / 2:
        raise InputError(
            f"{where}: surface points lie {off:.1f} px (median) from the middle of their cells; "
            "cameras and points do not belong together, or cells were counted by rounding"
        )


def registration_error(views: ReferenceViews) -> float:
    """Median distance, px, from a cell's middle to where its surface point projects."""
    columns = views.px // CELL_PX
    gaps = []
    for view in range(len(views.xyz)):
        known = views.xyz[view].isfinite().all(dim=-1)
        points = views.xyz[view][known].double()
        in_cam = points @ views.world_to_cam[view, :3, :3].T + views.world_to_cam[view, :3, 3]
        uv = in_cam @ views.intrinsics[view].double().T
        uv = uv[:, :2] / uv[:, 2:]
        cell = known.nonzero()[:, 0]
        middle = (torch.stack([cell % columns, cell // columns], dim=-1) + 0.5) * CELL_PX
        # Per axis: a point of the cell's corner is half a cell off in both.
        gaps.append((uv - middle).mean(dim=0).abs().max().expand(len(points)))
    return float(torch.cat(gaps).median())


def ring_cameras(
    count: int, px: int, elevations_deg: Sequence[float] = (20.0,), up: Literal["y", "z"] = "z"
) -> list[Camera]:
    """`count` cameras on each ring round the origin, all azimuths distinct, at BrokenChairs' distance and lens."""
    cameras = []
    axis = torch.tensor([0.0, 1.0, 0.0] if up == "y" else [0.0, 0.0, 1.0], dtype=torch.float64)
    for elevation in elevations_deg:
        for number in range(count):
            azimuth, height = 2 * math.pi * number / count, math.radians(elevation)
            flat = [math.cos(height) * math.cos(azimuth), math.cos(height) * math.sin(azimuth)]
            place = (
                [flat[0], math.sin(height), -flat[1]] if up == "y" else [flat[0], flat[1], math.sin(height)]
            )
            eye = torch.tensor(place, dtype=torch.float64) * DISTANCE
            pose = look_at(eye, torch.zeros(3, dtype=torch.float64), axis)
            cameras.append(Camera(pose, FOCAL * px, FOCAL * px, px / 2, px / 2, px, px))
    return cameras


def views_of_splats(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    centre: Float[Tensor, "xyz=3"],
    radius: float,
    shading: Shading = "grey",
) -> ReferenceViews:
    """Pictures of splats from cameras of the network's world; `centre` and `radius` bring the part's world into it.

    `grey` shades the surface that the depth shows, as the meshes' views are; `colour` keeps the splats' own.

    Raises: InputError as `check_views`.
    """
    white = torch.ones(3, dtype=gaussians.means.dtype, device=gaussians.device)
    pictures, shares, points = [], [], []
    for camera in cameras:
        own = _in_own_world(camera, centre, radius)
        with torch.no_grad():
            seen = rasterize(gaussians, own, white, options=RasterOptions(depth=True))
        assert seen.depth is not None
        alpha = seen.alpha.double().cpu()
        depth = torch.where(alpha > _SOLID, seen.depth.double().cpu() / alpha.clamp_min(1e-6), torch.inf)
        depth = depth / radius
        rgb = (
            seen.rgb.double().cpu().clamp(0, 1)
            if shading == "colour"
            else _grey(depth, alpha, _normals(depth, camera), camera)
        )
        share, xyz = cells_of(alpha, depth, camera)
        pictures.append((rgb * 255).round().to(torch.uint8))
        shares.append(share)
        points.append(xyz)
    return _stacked(pictures, shares, points, cameras, "reference of splats")


def views_of_mesh(
    mesh: Mesh,
    cameras: Sequence[Camera],
    centre: Float[Tensor, "xyz=3"],
    radius: float,
    shading: Shading = "grey",
    renderer: RendererName = "auto",
) -> ReferenceViews:
    """The same of a mesh.

    Raises: MissingPartError without a renderer; InputError as `check_views`.
    """
    painter = MeshPainter(mesh, surface_finder(mesh, renderer), np.array([0.0, 0.0, 1.0]))
    pictures, shares, points = [], [], []
    for camera in cameras:
        seen = painter.photograph(_in_own_world(camera, centre, radius))
        alpha, depth = torch.from_numpy(seen.alpha).double(), torch.from_numpy(seen.depth).double() / radius
        rgb = torch.from_numpy(seen.rgb).double()
        if shading == "colour":
            rgb = rgb * alpha[..., None] + 1 - alpha[..., None]
        else:
            rgb = _grey(depth, alpha, torch.from_numpy(seen.normals).double(), camera)
        share, xyz = cells_of(alpha, depth, camera)
        pictures.append((rgb.clamp(0, 1) * 255).round().to(torch.uint8))
        shares.append(share)
        points.append(xyz)
    return _stacked(pictures, shares, points, cameras, "reference of a mesh")


def views_of_pack(pack: ShapePairs, shape: int, views: Sequence[int] | None = None) -> ReferenceViews:
    """The views of a shape in a pack.

    Raises: InputError as `check_views`.
    """
    which = list(range(pack.view_count)) if views is None else list(views)
    pictures = torch.from_numpy(np.array(pack["views"][shape][which]))
    if pictures.dim() == 3:
        pictures = pictures[..., None].expand(-1, -1, -1, 3)
    result = ReferenceViews(
        pictures,
        torch.from_numpy(np.array(pack["view_alpha"][shape][which])).flatten(1).float() / 255,
        torch.from_numpy(np.array(pack["view_xyz"][shape][which])).flatten(1, 2),
        torch.from_numpy(np.array(pack["view_camera"][shape][which])),
        torch.from_numpy(np.array(pack["view_K"][shape][which])),
    )
    check_views(result, f"{pack.folder}, shape {shape}")
    return result


def cells_of(
    alpha: Float[Tensor, "height width"], depth: Float[Tensor, "height width"], camera: Camera
) -> tuple[Float[Tensor, "cells"], Float[Tensor, "cells xyz=3"]]:
    """Of each cell the share that the part covers, and the surface point at the pixel of the part nearest its middle.

    `depth` is infinite where nothing is. A cell whose pixels are all background has NaN.
    """
    rows, columns = alpha.shape[0] // CELL_PX, alpha.shape[1] // CELL_PX

    def by_cell(plane: Tensor) -> Tensor:
        return (
            plane.unflatten(0, (rows, CELL_PX))
            .unflatten(2, (columns, CELL_PX))
            .transpose(1, 2)
            .flatten(2)
            .flatten(0, 1)
        )

    offsets = torch.arange(CELL_PX, dtype=torch.float64) + 0.5 - CELL_PX / 2
    far = (offsets[:, None].square() + offsets[None].square()).flatten()
    deep = by_cell(depth.double())
    solid = (by_cell(alpha) > _SOLID) & deep.isfinite()
    nearest = torch.where(solid, far, torch.inf).argmin(dim=1)
    cell = torch.arange(rows * columns)
    v = (cell // columns * CELL_PX + nearest // CELL_PX).double() + 0.5
    u = (cell % columns * CELL_PX + nearest % CELL_PX).double() + 0.5
    points = _unprojected(u, v, deep.gather(1, nearest[:, None])[:, 0], camera)
    points = torch.where(solid.any(dim=1, keepdim=True), points, torch.nan)
    return by_cell(alpha).mean(dim=1).float(), points.float()


def save_views(path: Path, views: ReferenceViews) -> None:
    """Write the views to one .safetensors file, atomically."""
    tensors = {
        "pictures": views.pictures.contiguous(),
        "share": views.share,
        "xyz": views.xyz,
        "world_to_cam": views.world_to_cam,
        "intrinsics": views.intrinsics,
    }
    header = {"format": FORMAT, "about": json.dumps({"views": len(views.pictures), "px": views.px})}
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load_views(path: Path) -> ReferenceViews:
    """What `save_views` wrote.

    Raises: InputError where the file is missing, damaged or of another kind, and as `check_views`.
    """
    names = ("pictures", "share", "xyz", "world_to_cam", "intrinsics")
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise InputError(f"{path}: not the views of a reference; make them again")
            views = ReferenceViews(*(file.get_tensor(name) for name in names))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as views ({error}); make them again") from error
    check_views(views, str(path))
    return views


def _stacked(
    pictures: list[Tensor],
    shares: list[Tensor],
    points: list[Tensor],
    cameras: Sequence[Camera],
    where: str,
) -> ReferenceViews:
    if not cameras:
        raise InputError(f"{where}: no views; give at least one camera")
    views = ReferenceViews(
        torch.stack(pictures),
        torch.stack(shares),
        torch.stack(points),
        torch.stack([camera.world_to_cam.double().cpu() for camera in cameras]),
        torch.stack([camera.intrinsics.double().cpu() for camera in cameras]),
    )
    check_views(views, where)
    return views


def _in_own_world(camera: Camera, centre: Tensor, radius: float) -> Camera:
    """The camera in the part's own world: x_cam radius = R (x_own - centre) + radius t, with the same picture."""
    pose = camera.world_to_cam.double().clone()
    pose[:3, 3] = radius * pose[:3, 3] - pose[:3, :3] @ centre.double().cpu()
    return camera.moved(pose.to(torch.float32))


def _unprojected(
    u: Float[Tensor, "*pixels"], v: Float[Tensor, "*pixels"], depth: Float[Tensor, "*pixels"], camera: Camera
) -> Float[Tensor, "*pixels xyz=3"]:
    x, y = (u - camera.cx) / camera.fl_x * depth, (v - camera.cy) / camera.fl_y * depth
    pose = camera.world_to_cam.double().cpu()
    return (torch.stack([x, y, depth], dim=-1) - pose[:3, 3]) @ pose[:3, :3]


def _normals(depth: Float[Tensor, "height width"], camera: Camera) -> Float[Tensor, "height width xyz=3"]:
    """Unit normals of the surface that a depth map shows, towards the camera; 0 at its rims."""
    height, width = depth.shape
    v, u = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5,
        torch.arange(width, dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    points = _unprojected(u, v, depth, camera)
    across = F.pad(points[:, 2:] - points[:, :-2], (0, 0, 1, 1), value=math.nan)
    down = F.pad(points[2:] - points[:-2], (0, 0, 0, 0, 1, 1), value=math.nan)
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1)
    return normals.nan_to_num(0.0)


def _grey(
    depth: Float[Tensor, "height width"],
    alpha: Float[Tensor, "height width"],
    normals: Float[Tensor, "height width xyz=3"],
    camera: Camera,
) -> Float[Tensor, "height width rgb=3"]:
    """A grey part under a light at the camera, on white; at rims without a normal as if facing halfway."""
    facing = (normals @ camera.forward.double().cpu()).abs()
    facing = torch.where(normals.abs().sum(dim=-1) > 0, facing, 0.5)
    grey = _AMBIENT + _HEAD * facing
    grey = torch.where(alpha > 0, grey * alpha + 1 - alpha, 1.0)
    return grey[..., None].expand(-1, -1, 3)
