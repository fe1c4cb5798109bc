"""Pictures of a mesh: colour under a fixed soft light, depth, normals and mask, by ray casting or rasterising.

Two backends answer one question, which face a sub-pixel shows (`SurfaceFinder`): Embree on the CPU, and pytorch3d's
rasteriser where it is installed. Light, texture and filtering are the same code for both.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from prepare.camera import Camera, focal_from_fov, look_at
from prepare.errors import MissingPartError
from prepare.mesh import Mesh

RendererName = Literal["auto", "embree", "pytorch3d"]

CAMERA_ANGLE_X = 0.69111  # rad; MAD-Sim's and our generator's lens
ROOM = 1.03  # between the part's bounding sphere and the frame
# What a white surface shows: AMBIENT everywhere, up to SKY more the more it looks up, up to HEAD more the more it looks at
# the camera. Together below white, so that no part vanishes into its background.
AMBIENT, SKY, HEAD = 0.15, 0.30, 0.45
STEP = 0.04  # of a colour between neighbouring pixels, above which they are sampled finely
LOOKED_FROM, LOOKED_PX = 300, 200  # directions from which a face that no photo shows may still be seen
GOLDEN = math.pi * (3.0 - math.sqrt(5.0))


@dataclass(frozen=True)
class Hits:
    """What the sub-pixels of some pixels show: row by row of the image, the cells of a pixel row by row."""

    face: Int[np.ndarray, "pixels cells"]  # -1: nothing
    uv: Float[np.ndarray, "pixels cells 2"]  # weights of the face's second and third corner
    depth: Float[np.ndarray, "pixels cells"]  # z in the camera, world units; infinite where nothing is


@runtime_checkable
class SurfaceFinder(Protocol):
    """Which face is foremost at the middle of each of `supersample` x `supersample` cells of the wanted pixels."""

    name: str

    def find(self, camera: Camera, supersample: int, wanted: Bool[np.ndarray, "height width"]) -> Hits:
        """Faces are seen from both sides; an image without any wanted pixel gives no rows."""
        ...


@dataclass(frozen=True)
class MeshView:
    """A picture of a mesh and its exact geometry at the pixels' middles."""

    rgb: Float[np.ndarray, "height width rgb=3"]  # in [0, 1], of the part alone (not mixed with a background)
    alpha: Float[np.ndarray, "height width"]  # share of the pixel that the part covers
    depth: Float[
        np.ndarray, "height width"
    ]  # z in the camera, world units; infinite where the middle shows nothing
    normals: Float[np.ndarray, "height width xyz=3"]  # world, unit, towards the camera; 0 where nothing is


class EmbreeFinder:
    """By Embree's ray caster (embreex)."""

    name = "embree"

    def __init__(self, mesh: Mesh) -> None:
        """Raises: MissingPartError without embreex."""
        try:
            scenes = importlib.import_module("embreex.rtcore_scene")
            construction = importlib.import_module("embreex.mesh_construction")
        except ImportError as error:
            raise MissingPartError(
                "photographing meshes needs embreex, which is not installed (it is there for x86-64 alone; elsewhere "
                "install pytorch3d); pip install 'splatad[mesh]'"
            ) from error
        # Embree counts in float32: near the origin, in units of the part's size.
        self._centre = mesh.bounds.mean(axis=0)
        self._size = float(np.ptp(mesh.bounds, axis=0).max())
        self._scene: Any = scenes.EmbreeScene()
        corners = ((mesh.vertices - self._centre) / self._size)[mesh.faces]
        construction.TriangleMesh(self._scene, corners.astype(np.float32))

    def find(self, camera: Camera, supersample: int, wanted: Bool[np.ndarray, "height width"]) -> Hits:
        pose = camera.world_to_cam.double().numpy()
        position = (-pose[:3, :3].T @ pose[:3, 3] - self._centre) / self._size
        directions = (_rays(camera, supersample, wanted) @ pose[:3, :3]).astype(np.float32).reshape(-1, 3)
        origins = np.tile(position.astype(np.float32), (len(directions), 1))
        found = self._scene.run(origins, directions, query="INTERSECT", output=True)
        face = found["primID"].astype(np.int64)
        depth = np.where(face >= 0, found["tfar"] * self._size, np.inf)  # the rays go on by 1 in z
        shape = (-1, supersample * supersample)
        uv = np.stack([found["u"], found["v"]], axis=-1)
        return Hits(face.reshape(shape), uv.reshape(*shape, 2), depth.reshape(shape))


class Pytorch3dFinder:
    """By pytorch3d's rasteriser."""

    name = "pytorch3d"

    def __init__(self, mesh: Mesh) -> None:
        """Raises: MissingPartError without pytorch3d."""
        try:
            self._structures: Any = importlib.import_module("pytorch3d.structures")
            self._rasterize: Any = importlib.import_module("pytorch3d.renderer.mesh.rasterize_meshes")
        except ImportError as error:
            raise MissingPartError(
                "--renderer pytorch3d: pytorch3d is not installed; build it from its sources, or use --renderer embree"
            ) from error
        self._mesh = mesh

    def find(self, camera: Camera, supersample: int, wanted: Bool[np.ndarray, "height width"]) -> Hits:
        width, height = camera.width * supersample, camera.height * supersample
        fine = camera.resized(width, height)
        seen = fine.moved(camera.world_to_cam.double()).project(torch.from_numpy(self._mesh.vertices))
        # Its screen: x left, y up, the shorter side from -1 to 1.
        half = 0.5 * min(width, height)
        screen = torch.stack(
            [-(seen[:, 0] - 0.5 * width) / half, -(seen[:, 1] - 0.5 * height) / half, seen[:, 2]], dim=-1
        )
        faces = torch.from_numpy(self._mesh.faces)
        meshes = self._structures.Meshes([screen.float()], [faces])
        face, depth, weights, _ = self._rasterize.rasterize_meshes(
            meshes, image_size=(height, width), blur_radius=0.0, faces_per_pixel=1, perspective_correct=True
        )
        hit = face[0, ..., 0] >= 0
        depth = torch.where(hit, depth[0, ..., 0], torch.inf)
        return Hits(
            _cells(face[0, ..., 0].numpy(), supersample)[wanted],
            _cells(weights[0, ..., 0, 1:].numpy(), supersample)[wanted],
            _cells(depth.numpy(), supersample)[wanted],
        )


def surface_finder(mesh: Mesh, name: RendererName = "auto") -> SurfaceFinder:
    """The backend of that name; `auto` takes Embree, else pytorch3d.

    Raises: MissingPartError where it is not installed.
    """
    if name == "embree":
        return EmbreeFinder(mesh)
    if name == "pytorch3d":
        return Pytorch3dFinder(mesh)
    try:
        return EmbreeFinder(mesh)
    except MissingPartError as missing:
        try:
            return Pytorch3dFinder(mesh)
        except MissingPartError:
            raise missing from None


class MeshPainter:
    """Photographs one mesh."""

    def __init__(
        self,
        mesh: Mesh,
        finder: SurfaceFinder,
        up: Float[np.ndarray, "xyz=3"],  # world, unit: where the sky is
        supersample: int = 3,  # along each axis, where colours change
    ) -> None:
        self.mesh, self.finder, self.up, self.supersample = mesh, finder, up, supersample
        self._levels = [_halvings(texture) for texture in mesh.textures]
        self._texels = _texels_per_unit(mesh) if mesh.textures else None
        self._face_normals = mesh.face_normals.astype(np.float32)

    def photograph(self, camera: Camera) -> MeshView:
        """The mesh from `camera`: one sample a pixel, `supersample`^2 where the neighbours' differ, averaged."""
        rows, columns = _frame_of(self.mesh, camera)
        window = replace(
            camera,
            cx=camera.cx - columns.start,
            cy=camera.cy - rows.start,
            width=columns.stop - columns.start,
            height=rows.stop - rows.start,
        )
        part = self._photograph(window)
        shape = (camera.height, camera.width)
        view = MeshView(
            np.zeros((*shape, 3), np.float32),
            np.zeros(shape, np.float32),
            np.full(shape, np.inf, np.float32),
            np.zeros((*shape, 3), np.float32),
        )
        for whole, piece in (
            (view.rgb, part.rgb), (view.alpha, part.alpha), (view.depth, part.depth), (view.normals, part.normals)
        ):  # fmt: skip
            whole[rows, columns] = piece
        return view

    def depth(self, camera: Camera) -> Float[np.ndarray, "height width"]:
        """As `photograph`'s."""
        rows, columns = _frame_of(self.mesh, camera)
        wanted = np.zeros((camera.height, camera.width), bool)
        wanted[rows, columns] = True
        depth = np.full(wanted.shape, np.inf, np.float32)
        depth[wanted] = self.finder.find(camera, 1, wanted).depth[:, 0]
        return depth

    def _photograph(self, camera: Camera) -> MeshView:
        """All of what `camera` sees."""
        shape = (camera.height, camera.width)
        wanted = np.ones(shape, bool)
        hits = self.finder.find(camera, 1, wanted)
        colour, normal = self._shade(camera, hits, _rays(camera, 1, wanted), 1)
        rgb, alpha = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
        depth, normals = np.full(shape, np.inf, np.float32), np.zeros((*shape, 3), np.float32)
        rgb[wanted], alpha[wanted] = colour[:, 0], hits.face[:, 0] >= 0
        depth[wanted], normals[wanted] = hits.depth[:, 0], normal[:, 0]
        if self.supersample > 1:
            edges = _changing(rgb, alpha, depth, normals)
            hits = self.finder.find(camera, self.supersample, edges)
            colour, _ = self._shade(camera, hits, _rays(camera, self.supersample, edges), self.supersample)
            covered = (hits.face >= 0).astype(np.float32)
            share = covered.mean(axis=1)
            rgb[edges] = colour.sum(axis=1) / np.maximum(covered.sum(axis=1), 1.0)[:, None]
            alpha[edges] = share
        return MeshView(rgb, alpha, depth, normals)

    def _shade(
        self, camera: Camera, hits: Hits, rays: NDArray[np.float64], supersample: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colour and world normal of each sub-pixel, 0 where it shows nothing."""
        colour = np.zeros((*hits.face.shape, 3), np.float32)
        normal = np.zeros_like(colour)
        hit = hits.face >= 0
        if not hit.any():
            return colour, normal
        face, uv = hits.face[hit], hits.uv[hit].astype(np.float32)
        weight = np.stack([1.0 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=1)
        turn = camera.world_to_cam[:3, :3].double().numpy().astype(np.float32)
        to_camera = -(rays[hit].astype(np.float32) @ turn)
        to_camera /= _lengths(to_camera)
        facing = _interpolated(self.mesh.corner_normals, face, weight)
        facing /= np.maximum(_lengths(facing), 1e-12)
        back = np.einsum("ij,ij->i", self._face_normals[face], to_camera) < 0
        facing[back] *= -1.0
        spread = hits.depth[hit] / (min(camera.fl_x, camera.fl_y) * supersample)
        base = self.albedo(face, weight, spread)
        colour[hit] = base * shade(facing, to_camera, self.up.astype(np.float32))[:, None]
        normal[hit] = facing
        return colour, normal

    def albedo(
        self,
        face: Int[np.ndarray, " n"],
        weight: Float[np.ndarray, "n corner=3"],
        spread: Float[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n rgb=3"]:
        """The unlit colour of faces at those weights of their corners, sampled about `spread` world units apart."""
        base = _interpolated(self.mesh.corner_colours, face, weight)
        return base if self._texels is None else base * self._textured(face, weight, spread)

    def _textured(self, face: NDArray[Any], weight: NDArray[Any], spread: NDArray[Any]) -> NDArray[Any]:
        """The texture's colour (1 where there is none), bilinear in the level whose texels are about a sample apart."""
        assert self._texels is not None
        found = np.ones((len(face), 3), np.float32)
        texture = self.mesh.face_texture[face]
        uv = _interpolated(self.mesh.corner_uv, face, weight)
        wanted = np.log2(np.maximum(spread * self._texels[face], 1e-12))
        for number, levels in enumerate(self._levels):
            level = np.clip(np.rint(wanted), 0, len(levels) - 1).astype(int)
            for step, image in enumerate(levels):
                rows = np.flatnonzero((texture == number) & (level == step))
                if len(rows):
                    found[rows] = _bilinear(image, uv[rows])
        return found


def shade(
    normals: Float[np.ndarray, "n xyz=3"],
    to_camera: Float[np.ndarray, "n xyz=3"],
    up: Float[np.ndarray, "xyz=3"],
) -> Float[np.ndarray, " n"]:
    """Share of its colour that a matt surface shows, in [AMBIENT, AMBIENT + SKY + HEAD]: a sky fixed to the part and a lamp
    at the camera. Unit vectors, normals towards the camera."""
    head = np.einsum("ij,ij->i", normals, to_camera).clip(0.0, 1.0)
    return AMBIENT + SKY * (0.5 + 0.5 * (normals @ up)) + HEAD * head


def orbit(mesh: Mesh, count: int, size_px: int, up: Float[np.ndarray, "xyz=3"]) -> list[Camera]:
    """`count` cameras evenly over the whole sphere, all so far that the part fills their frame from no side too large.

    A golden-angle spiral from top to bottom: equal areas, no rings whose gaps line up (Gonzalez 2010).
    """
    heights = 1.0 - (2.0 * np.arange(count) + 1.0) / count
    return [orbit_camera(mesh, h, GOLDEN * i, size_px, up) for i, h in enumerate(heights)]


def orbit_camera(
    mesh: Mesh, height: float, azimuth: float, size_px: int, up: Float[np.ndarray, "xyz=3"]
) -> Camera:
    """The orbit's camera over the part's middle in the direction of that height (-1 to 1, along `up`) and azimuth (rad)."""
    centre = mesh.bounds.mean(axis=0)
    radius = float(np.linalg.norm(mesh.vertices - centre, axis=1).max())
    distance = ROOM * radius / math.sin(0.5 * CAMERA_ANGLE_X)
    side = np.eye(3)[int(np.abs(up).argmin())]
    east = np.cross(up, side)
    east /= np.linalg.norm(east)
    flat = math.sqrt(max(0.0, 1.0 - height * height))
    direction = height * up + flat * (math.cos(azimuth) * east + math.sin(azimuth) * np.cross(up, east))
    pose = look_at(
        torch.from_numpy(centre + distance * direction), torch.from_numpy(centre), torch.from_numpy(up)
    )
    focal = focal_from_fov(size_px, CAMERA_ANGLE_X)
    return Camera(pose, focal, focal, 0.5 * size_px, 0.5 * size_px, size_px, size_px)


@dataclass(frozen=True)
class SurfacePoints:
    """Points on what can be seen of a mesh."""

    positions: Float[np.ndarray, "n xyz=3"]  # world
    normals: Float[np.ndarray, "n xyz=3"]  # unit, on the side that cameras see most
    colours: Float[np.ndarray, "n rgb=3"]  # in [0, 1], lit as the average camera sees them
    headlight: Float[np.ndarray, "n rgb=3"]  # of `prepare.points.PointCloud`


def surface_points(
    mesh: Mesh,
    painter: MeshPainter,
    cameras: list[Camera],
    depths: list[Float[np.ndarray, "height width"]],
    count: int,
    seed: int = 0,
) -> SurfacePoints:
    """About `count` points evenly on the faces that a camera sees by its depth map, or else one of LOOKED_FROM directions more:
    few photos look into a deep hole, and a query may. What lies inside is left out.
    """
    rng = np.random.default_rng(seed)
    positions, normals, base = _sampled(mesh, painter, 4 * count, rng)
    seen = np.zeros(len(positions), bool)
    side = np.zeros(len(positions))  # cameras in front of the face, less those behind

    def look(camera: Camera, depth: NDArray[Any], rows: NDArray[Any]) -> None:
        u, v, z = camera.project(torch.from_numpy(positions[rows])).unbind(-1)
        column = u.numpy().astype(int).clip(0, camera.width - 1)
        row = v.numpy().astype(int).clip(0, camera.height - 1)
        # Across a pixel a surface at 60 degrees recedes by less than two of its widths.
        shown = np.abs(z.numpy() - depth[row, column]) < 2.0 * z.numpy() / camera.fl_x
        rows = rows[shown]
        seen[rows] = True
        to_camera = camera.centre.double().numpy() - positions[rows]
        side[rows] += np.sign(np.einsum("ij,ij->i", normals[rows], to_camera))

    for camera, depth in zip(cameras, depths, strict=True):
        look(camera, depth, np.arange(len(positions)))
    for camera in orbit(mesh, LOOKED_FROM, LOOKED_PX, painter.up):
        unseen = np.flatnonzero(~seen)
        if len(unseen) == 0:
            break
        look(camera, painter.depth(camera), unseen)
    if not seen.any():
        seen[:] = True
    positions, normals, base = positions[seen], normals[seen], base[seen]
    normals[side[seen] < 0] *= -1.0
    chosen = _thinned(positions, count)
    positions, normals, base = positions[chosen], normals[chosen], base[chosen]
    light = AMBIENT + SKY * (0.5 + 0.5 * (normals @ painter.up)) + HEAD * 2.0 / 3.0
    return SurfacePoints(positions, normals, base * light[:, None], base * HEAD)


def _sampled(
    mesh: Mesh, painter: MeshPainter, count: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Points spread by area, with normals and unlit colours."""
    # One point in each of `count` equal slices of the area: faces that are larger than a slice never go without.
    edges = np.cumsum(mesh.areas)
    at = (np.arange(count) + rng.random(count)) / count * edges[-1]
    face = np.searchsorted(edges, at, side="right").clip(0, len(edges) - 1)
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    uv = np.stack([root * (1.0 - along), root * along], axis=1)
    weight = np.stack([1.0 - root, uv[:, 0], uv[:, 1]], axis=1)
    positions = np.einsum("ij,ijk->ik", weight, mesh.vertices[mesh.faces[face]])
    normals = _interpolated(mesh.corner_normals, face, weight)
    normals /= np.maximum(_lengths(normals), 1e-12)
    base = painter.albedo(face, weight, np.full(count, math.sqrt(edges[-1] / count)))
    return positions, normals, base


def _thinned(points: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows of about `count` points that keep their distance: those too near an earlier one are dropped.

    Source: dart throwing, Cook 1986; the distance is found by bisection.
    """
    from scipy.spatial import cKDTree

    if len(points) <= count:
        return np.arange(len(points))
    tree = cKDTree(points)
    size = float(np.ptp(points, axis=0).max())
    low, high = 0.0, 4.0 * size / math.sqrt(count)
    best = np.arange(len(points))
    for _ in range(9):
        radius = 0.5 * (low + high)
        pairs = tree.query_pairs(radius, output_type="ndarray")
        kept = _independent(pairs, len(points)) if len(pairs) < 40 * len(points) else np.zeros(0, int)
        if len(kept) >= count:
            low, best = radius, kept
        else:
            high = radius
    return best


def _independent(pairs: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows of which no two are a pair: rounds in which every row that comes before its living neighbours stays."""
    order = (
        np.arange(count) * 2_654_435_761
    ) % 4_294_967_296  # Knuth's hash: else neighbours on a face go in a row
    alive, kept = np.ones(count, bool), np.zeros(count, bool)
    while alive.any():
        beaten = np.zeros(count, bool)
        a, b = pairs[:, 0], pairs[:, 1]
        beaten[np.where(order[a] < order[b], b, a)] = True
        winners = alive & ~beaten
        kept |= winners
        alive &= ~winners
        alive[b[winners[a]]] = False
        alive[a[winners[b]]] = False
        pairs = pairs[alive[a] & alive[b]]
    return np.flatnonzero(kept)


def _interpolated(corners: NDArray[Any], face: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """What stands at the faces' corners, weighted."""
    first, second, third = (corners[face, k] * weight[:, k, None] for k in range(3))
    return (first + second + third).astype(np.float32)


def _lengths(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]


def _rays(
    camera: Camera, supersample: int, wanted: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "pixels cells xyz=3"]:
    """Directions in the camera through the middles of the wanted pixels' cells, z = 1."""
    rows, columns = np.nonzero(wanted)
    offset = (np.arange(supersample) + 0.5) / supersample
    x = (columns[:, None, None] + offset[None, None, :] - camera.cx) / camera.fl_x
    y = (rows[:, None, None] + offset[None, :, None] - camera.cy) / camera.fl_y
    x, y = np.broadcast_arrays(x, y)
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(len(rows), -1, 3)


def _cells(image: NDArray[Any], supersample: int) -> NDArray[Any]:
    """(height, width, cells, ...) of an image `supersample` times as large."""
    height, width = image.shape[0] // supersample, image.shape[1] // supersample
    split = image.reshape(height, supersample, width, supersample, *image.shape[2:])
    return split.swapaxes(1, 2).reshape(height, width, supersample * supersample, *image.shape[2:])


def _frame_of(mesh: Mesh, camera: Camera) -> tuple[slice, slice]:
    """Rows and columns of the mesh's rectangle on the screen; all where it reaches behind the camera or is out of sight."""
    seen = camera.project(torch.from_numpy(mesh.vertices).to(camera.world_to_cam.dtype)).numpy()
    whole = slice(0, camera.height), slice(0, camera.width)
    if seen[:, 2].min() <= 0:
        return whole
    left, top = (np.floor(seen[:, :2].min(axis=0)).astype(int) - 1).tolist()
    right, bottom = (np.ceil(seen[:, :2].max(axis=0)).astype(int) + 1).tolist()
    rows = slice(max(0, top), min(camera.height, max(0, bottom)))
    columns = slice(max(0, left), min(camera.width, max(0, right)))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else whole


def _changing(
    rgb: NDArray[Any], alpha: NDArray[Any], depth: NDArray[Any], normals: NDArray[Any]
) -> NDArray[np.bool_]:
    """Pixels that differ from a neighbour by more than a smooth surface does, and the neighbours."""
    finite = np.where(np.isfinite(depth), depth, 0.0)
    inverse = np.divide(1.0, finite, out=np.zeros_like(finite), where=finite > 0)
    changing = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(rgb, axis=axis)).max(axis=-1) > STEP
        step |= np.diff(alpha, axis=axis) != 0
        step |= (np.diff(normals, axis=axis) ** 2).sum(axis=-1) > 0.06
        after = [slice(None), slice(None)]
        before = [slice(None), slice(None)]
        after[axis], before[axis] = slice(1, None), slice(None, -1)
        changing[tuple(after)] |= step
        changing[tuple(before)] |= step
        # A plane's inverse depth is linear across the screen: a second difference is an edge behind which all looks alike.
        bend = np.abs(np.diff(inverse, n=2, axis=axis)) > 1e-3 * float(inverse.max())
        middle = [slice(None), slice(None)]
        middle[axis] = slice(1, -1)
        changing[tuple(middle)] |= bend
    grown = changing.copy()
    grown[1:] |= changing[:-1]
    grown[:-1] |= changing[1:]
    wide = grown.copy()
    wide[:, 1:] |= grown[:, :-1]
    wide[:, :-1] |= grown[:, 1:]
    return wide


def _texels_per_unit(mesh: Mesh) -> NDArray[np.float64]:
    """Of each face: texels of its texture along a world unit, 0 without a texture."""
    sizes = np.array([[texture.shape[1], texture.shape[0]] for texture in mesh.textures] + [[0, 0]], float)
    uv = mesh.corner_uv.astype(np.float64) * sizes[mesh.face_texture][:, None]
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    texels = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    return np.sqrt(texels / mesh.areas)


def _halvings(texture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """The texture and its halvings down to a few texels, each the mean of 2 x 2."""
    levels = [texture.astype(np.float32) / 255.0]
    while min(levels[-1].shape[:2]) >= 4:
        image = levels[-1][: levels[-1].shape[0] // 2 * 2, : levels[-1].shape[1] // 2 * 2]
        levels.append(0.25 * (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]))
    return levels


def _bilinear(image: NDArray[np.float32], uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image at texture coordinates, v up, repeating."""
    height, width = image.shape[:2]
    x = uv[:, 0] % 1.0 * width - 0.5
    y = (1.0 - uv[:, 1]) % 1.0 * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share = (x - left).astype(np.float32)[:, None]
    low_share = (y - top).astype(np.float32)[:, None]
    upper = image[top % height, left % width] * (1 - right_share)
    upper += image[top % height, (left + 1) % width] * right_share
    lower = image[(top + 1) % height, left % width] * (1 - right_share)
    lower += image[(top + 1) % height, (left + 1) % width] * right_share
    return upper * (1 - low_share) + lower * low_share
