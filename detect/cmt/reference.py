"""The reference as CMT sees it: pictures of a shape or of splats from known cameras, with the surface points they show.

Colour, alpha and depth of a view come from one rendering. Surface points are kept in the network's world: the part inside the
unit sphere, y up (`PartFrame`). Grey views have the light of `prepare.mesh_render`, as those that the network learns from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from detect.cmt.encoder import CELL_PX
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.mesh import GREY, Axis, Mesh
from prepare.mesh_render import AMBIENT, HEAD, SKY, MeshPainter, RendererName, shade, surface_finder
from prepare.shape_pairs import ShapePairs
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, rasterize

Shading = Literal["grey", "colour"]
_UP = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
_FILLED = 0.98  # radius of the part in the network's world, as of the chairs that it learns from
_SOLID = 0.5  # alpha from which a pixel shows the part
FINE = 4  # splats are rendered so many times finer along each side, and averaged


@dataclass(frozen=True)
class PartFrame:
    """Where the part's own world lies in the network's: x_network = turn (x_own - centre) / radius."""

    centre: Float[Tensor, "xyz=3"]  # own world, float64
    radius: float  # of the sphere about it that holds the part
    turn: Float[Tensor, "3 3"]  # float64; y is up in the network's world

    def into_network(self, camera: Camera) -> Camera:
        """A camera of the part's own world in the network's, with the same picture."""
        pose = camera.world_to_cam.double().cpu().clone()
        pose[:3, 3] = (pose[:3, :3] @ self.centre + pose[:3, 3]) / self.radius
        pose[:3, :3] = pose[:3, :3] @ self.turn.T
        return camera.moved(pose)

    def out_of_network(self, camera: Camera) -> Camera:
        """The reverse: x_cam radius = R turn (x_own - centre) + radius t."""
        pose = camera.world_to_cam.double().cpu().clone()
        pose[:3, :3] = pose[:3, :3] @ self.turn
        pose[:3, 3] = self.radius * pose[:3, 3] - pose[:3, :3] @ self.centre
        return camera.moved(pose.to(torch.float32))


def part_frame(points: Float[Tensor, "points xyz=3"], up: Axis, outliers: float = 0.0) -> PartFrame:
    """The frame of a part with these points, `up` in their own world; the share `outliers` of them may lie outside.

    Raises: InputError where there are no points, or all are one.
    """
    points = points.double().cpu()
    if len(points) == 0:
        raise InputError("reference: no surface; give a part that has one")
    cut = torch.quantile(points, torch.tensor([outliers / 2, 1 - outliers / 2], dtype=torch.float64), dim=0)
    centre = cut.mean(dim=0)
    radius = float(torch.quantile((points - centre).norm(dim=1), 1 - outliers))
    if not 0 < radius < math.inf:
        raise InputError("reference: all of it is one point; give a part that has a surface")
    turn = torch.eye(3, dtype=torch.float64)
    if up == "z":
        turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    return PartFrame(centre, radius / _FILLED, turn)


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


def views_of_splats(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    frame: PartFrame,
    shading: Shading = "grey",
) -> ReferenceViews:
    """Pictures of splats from cameras of the network's world; `frame` says where they lie in it.

    `grey` shades the surface that the depth shows, as the meshes' views are; `colour` keeps the splats' own.

    Raises: InputError as `check_views`.
    """
    white = torch.ones(3, dtype=gaussians.means.dtype, device=gaussians.device)
    pictures, shares, points = [], [], []
    for camera in cameras:
        fine = camera.resized(FINE * camera.width, FINE * camera.height)
        with torch.no_grad():
            seen = rasterize(gaussians, frame.out_of_network(fine), white, options=RasterOptions(depth=True))
        assert seen.depth is not None
        alpha = seen.alpha.double().cpu()
        depth = torch.where(alpha > _SOLID, seen.depth.double().cpu() / alpha.clamp_min(1e-6), torch.inf)
        depth = depth / frame.radius
        # The part's share of a pixel is that of its solid points, as in photos and in the views of meshes: the soft skirts of
        # splats would make every silhouette larger than the photo's.
        solid = depth.isfinite().double()
        rgb = (
            seen.rgb.double().cpu().clamp(0, 1)
            if shading == "colour"
            else _grey(depth, solid, _normals(depth, fine), fine)
        )
        rgb, alpha = _pooled(rgb), _pooled(solid[..., None])[..., 0]
        near = _pooled(torch.where(solid > 0, depth, 0.0)[..., None])[..., 0]
        depth = torch.where(alpha > _SOLID, near / alpha.clamp_min(1e-6), torch.inf)
        share, xyz = cells_of(alpha, depth, camera)
        pictures.append((rgb * 255).round().to(torch.uint8))
        shares.append(share)
        points.append(xyz)
    return _stacked(pictures, shares, points, cameras, "reference of splats")


def _pooled(fine: Float[Tensor, "rows columns channels"]) -> Float[Tensor, "height width channels"]:
    """Means of FINE x FINE pixels."""
    return F.avg_pool2d(fine.permute(2, 0, 1)[None], FINE)[0].permute(1, 2, 0)


class MeshViewer:
    """Takes the same pictures of a mesh, any number of times."""

    def __init__(
        self, mesh: Mesh, frame: PartFrame, shading: Shading = "grey", renderer: RendererName = "auto"
    ) -> None:
        """`frame` says where the mesh lies in the network's world. Raises: MissingPartError without a renderer."""
        to_network = np.eye(4)
        to_network[:3, :3] = frame.turn.numpy() / frame.radius
        to_network[:3, 3] = -to_network[:3, :3] @ frame.centre.numpy()
        mesh = mesh.transformed(to_network)
        if shading == "grey":
            mesh = replace(
                mesh,
                corner_colours=np.full_like(mesh.corner_colours, GREY),
                face_texture=np.full_like(mesh.face_texture, -1),
                textures=(),
                coloured=False,
            )
        self.mesh = mesh  # in the network's world
        self.painter = MeshPainter(mesh, surface_finder(mesh, renderer), _UP.numpy())

    def views(self, cameras: Sequence[Camera]) -> ReferenceViews:
        """Pictures from cameras of the network's world. Raises: InputError as `check_views`."""
        pictures, shares, points = [], [], []
        for camera in cameras:
            seen = self.painter.photograph(camera)
            alpha, depth = torch.from_numpy(seen.alpha).double(), torch.from_numpy(seen.depth).double()
            rgb = torch.from_numpy(seen.rgb).double() * alpha[..., None] + 1 - alpha[..., None]
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


def _unprojected(
    u: Float[Tensor, "*pixels"], v: Float[Tensor, "*pixels"], depth: Float[Tensor, "*pixels"], camera: Camera
) -> Float[Tensor, "*pixels xyz=3"]:
    x, y = (u - camera.cx) / camera.fl_x * depth, (v - camera.cy) / camera.fl_y * depth
    pose = camera.world_to_cam.double().cpu()
    return (torch.stack([x, y, depth], dim=-1) - pose[:3, 3]) @ pose[:3, :3]


def _normals(depth: Float[Tensor, "height width"], camera: Camera) -> Float[Tensor, "height width xyz=3"]:
    """Unit normals of the surface that a depth map shows, towards the camera; 0 at its rims."""
    points = _unprojected(*_pixel_middles(depth), depth, camera)
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
    """A grey part in the light of `prepare.mesh_render`, on white; rims without a normal as if facing halfway, level."""
    away = camera.centre.double().cpu() - _unprojected(*_pixel_middles(depth), depth, camera)
    seen = (normals.abs().sum(dim=-1) > 0) & depth.isfinite()
    light = torch.full_like(depth, AMBIENT + 0.5 * (SKY + HEAD))
    to_camera = F.normalize(away[seen], dim=-1)
    light[seen] = torch.from_numpy(shade(normals[seen].numpy(), to_camera.numpy(), _UP.numpy()))
    grey = torch.where(alpha > 0, GREY * light * alpha + 1 - alpha, 1.0)
    return grey[..., None].expand(-1, -1, 3)


def _pixel_middles(
    plane: Float[Tensor, "height width"],
) -> tuple[Float[Tensor, "height width"], Float[Tensor, "height width"]]:
    """(u, v) of the pixels' middles, px."""
    v, u = torch.meshgrid(
        torch.arange(plane.shape[0], dtype=torch.float64) + 0.5,
        torch.arange(plane.shape[1], dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    return u, v
