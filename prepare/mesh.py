"""Triangle meshes from files: read by trimesh, flattened, cleaned, with a word on everything that was wrong with them.

A mesh here is for looking at, not for machining: what a picture does not show (holes, inverted faces, doubled vertices) is
told and lived with; what leaves nothing to look at (no faces, no area) is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from prepare.errors import InputError, MissingPartError

Unit = Literal["mm", "cm", "m", "inch"]
Axis = Literal["y", "z"]

MM: dict[Unit, float] = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4}
MESH_SUFFIXES = (".stl", ".obj", ".ply", ".glb", ".gltf", ".off", ".step", ".stp")
MAX_FACES = 1_500_000  # more are thinned: no picture of the part shows them
MAX_FILE_BYTES = 2 << 30
GREY = 0.7  # of a bare shape, in [0, 1]
SMOOTH_DEG = 30.0  # an edge between faces that turn by less is drawn round
MERGE_BITS = 20  # vertices in one cell of a grid of 2^20 across the part are one
THIN_BITS = (12, 11, 10, 9)  # the same for thinning, finest first
_MOST_NEIGHBOURS = 256  # faces round a vertex that its normals are averaged over


@dataclass(frozen=True)
class Mesh:
    """Triangles with what is needed to draw them; corners of a face are its three vertices in order."""

    vertices: Float[np.ndarray, "n xyz=3"]  # file or world units, float64, all finite
    faces: Int[np.ndarray, "m corner=3"]  # rows of `vertices`; every face has an area
    corner_normals: Float[np.ndarray, "m corner=3 xyz=3"]  # unit, on the side of the face's winding
    corner_colours: Float[np.ndarray, "m corner=3 rgb=3"]  # in [0, 1], sRGB; a texture's are multiplied by it
    corner_uv: Float[np.ndarray, "m corner=3 uv=2"]  # texture coordinates, v up, repeating; 0 without texture
    face_texture: Int[np.ndarray, " m"]  # index into `textures`, -1 for none
    textures: tuple[UInt8[np.ndarray, "_ _ rgb=3"], ...]  # sRGB
    coloured: bool  # whether the file says a colour; else all is grey

    @property
    def bounds(self) -> Float[np.ndarray, "low_high=2 xyz=3"]:
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    @cached_property
    def face_normals(self) -> Float[np.ndarray, "m xyz=3"]:
        """Unit, by the right-hand rule of the winding."""
        across = _cross(self.vertices, self.faces)
        return across / np.linalg.norm(across, axis=1, keepdims=True)

    @cached_property
    def areas(self) -> Float[np.ndarray, " m"]:
        """Of the faces, squared units."""
        return 0.5 * np.linalg.norm(_cross(self.vertices, self.faces), axis=1)

    def transformed(self, matrix: Float[np.ndarray, "4 4"]) -> Mesh:
        """The mesh after a rotation, a uniform scale above 0 and a translation."""
        turn = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
        return replace(
            self,
            vertices=self.vertices @ matrix[:3, :3].T + matrix[:3, 3],
            corner_normals=(self.corner_normals @ turn.T).astype(np.float32),
        )

    def digest(self) -> str:
        """SHA-256 of all that its pictures depend on."""
        found = hashlib.sha256()
        for array in (
            self.vertices, self.faces, self.corner_colours, self.corner_uv, self.face_texture, *self.textures
        ):  # fmt: skip
            found.update(str(array.shape).encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class MeshFile:
    """What a file holds."""

    mesh: Mesh  # in the file's units and axes
    notes: tuple[str, ...]  # what was wrong and what was done about it, a line each
    unit: Unit | None  # None where the kind of file has none and none can be guessed
    unit_source: str  # where the unit comes from, for the log
    up: Axis  # usual for the kind of file


@dataclass(frozen=True)
class _Soup:
    """Geometry as it comes, before it is cleaned."""

    vertices: np.ndarray
    faces: np.ndarray
    corner_colours: np.ndarray
    corner_uv: np.ndarray
    texture: np.ndarray | None
    coloured: bool


def load_mesh(path: Path) -> MeshFile:
    """The mesh in a .stl, .obj, .ply, .glb, .gltf, .off or .step file, its parts put together as the file places them.

    Raises: MissingPartError without trimesh (and cascadio for STEP); InputError for a file that cannot be read, or that
    has no faces, no area or only broken vertices.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such mesh; give a .stl, .obj, .ply, .glb or .step file")
    if suffix not in MESH_SUFFIXES:
        raise InputError(
            f"{path}: unknown kind of mesh; export the part as .stl, .obj, .ply or .glb ({', '.join(MESH_SUFFIXES)} are read)"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(
            f"{path}: is {path.stat().st_size >> 20} MB, limit {MAX_FILE_BYTES >> 20} MB; export it with a coarser tolerance"
        )
    notes: list[str] = []
    soups = _read(path, notes)
    mesh = _cleaned(path, soups, notes)
    unit: Unit | None = None
    source = "the file does not say; give --unit to have defects measured in mm"
    if suffix == ".stl":
        unit, source = "mm", "guessed, as an .stl does not say; correct it with --unit"
    elif suffix in (".glb", ".gltf"):
        unit, source = "m", "as every glTF file"
    elif suffix in (".step", ".stp"):
        unit, source = "m", "as cascadio converts STEP to"
    return MeshFile(mesh, tuple(notes), unit, source, "y" if suffix in (".glb", ".gltf", ".obj") else "z")


def mesh_of(
    corners: Float[np.ndarray, "m corner=3 xyz=3"],
    *,
    colours: Float[np.ndarray, "m corner=3 rgb=3"] | None = None,
    uv: Float[np.ndarray, "m corner=3 uv=2"] | None = None,
    face_texture: Int[np.ndarray, " m"] | None = None,
    textures: tuple[UInt8[np.ndarray, "_ _ rgb=3"], ...] = (),
) -> Mesh:
    """A mesh of triangles given by their corners: equal vertices are one, faces without area are left out.

    Raises: ValueError where none is left.
    """
    count = len(corners)
    flat = np.asarray(corners, dtype=np.float64).reshape(-1, 3)
    first, inverse = _grid_groups(flat, MERGE_BITS)
    vertices, faces = flat[first], inverse.reshape(-1, 3)
    whole = _has_area(vertices, faces)
    if not whole.any():
        raise ValueError("no face with an area")
    faces = faces[whole]
    coloured = colours is not None or bool(textures)
    shown = np.full((count, 3, 3), 1.0 if textures else GREY) if colours is None else colours
    return Mesh(
        vertices,
        faces,
        smooth_normals(vertices, faces),
        np.ascontiguousarray(shown[whole], dtype=np.float32),
        np.zeros((len(faces), 3, 2), np.float32) if uv is None else uv[whole].astype(np.float32),
        np.full(len(faces), -1, np.int64) if face_texture is None else face_texture[whole].astype(np.int64),
        textures,
        coloured,
    )


def smooth_normals(
    vertices: Float[np.ndarray, "n xyz=3"], faces: Int[np.ndarray, "m corner=3"]
) -> Float[np.ndarray, "m corner=3 xyz=3"]:
    """Unit normals at each face's corners: of the faces round the vertex that turn from this one by less than SMOOTH_DEG,
    weighted by their angle there; sharp edges stay sharp.

    Source: Thürmer and Wüthrich 1998 (angle weights).
    """
    across = _cross(vertices, faces)
    normals = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-300)
    ahead = vertices[faces[:, [1, 2, 0]]] - vertices[faces]
    ahead /= np.maximum(np.linalg.norm(ahead, axis=2, keepdims=True), 1e-300)
    angle = np.arccos(np.clip(-(ahead * ahead[:, [2, 0, 1]]).sum(axis=2), -1.0, 1.0)).ravel()

    corner = np.argsort(faces.ravel(), kind="stable")  # corners vertex by vertex
    vertex = faces.ravel()[corner]
    degree = np.bincount(vertex)
    start = (np.cumsum(degree) - degree)[vertex]
    place = np.arange(len(corner)) - start
    own = normals[corner // 3]
    total = own * angle[corner, None]
    least = np.cos(np.deg2rad(SMOOTH_DEG))
    for shift in range(1, min(int(degree.max()), _MOST_NEIGHBOURS)):
        rows = np.flatnonzero(degree[vertex] > shift)
        other = corner[start[rows] + (place[rows] + shift) % degree[vertex[rows]]]
        theirs = normals[other // 3]
        weight = angle[other] * ((theirs * own[rows]).sum(axis=1) > least)
        total[rows] += theirs * weight[:, None]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    total = np.where(length > 1e-12, total / np.maximum(length, 1e-300), own)
    found = np.empty((3 * len(faces), 3), np.float32)
    found[corner] = total
    return found.reshape(-1, 3, 3)


def trimesh_module() -> Any:
    """trimesh, imported when a mesh is first read. Raises: MissingPartError without it."""
    try:
        return importlib.import_module("trimesh")
    except ImportError as error:
        raise MissingPartError(
            "reading meshes needs trimesh, which is not installed; pip install 'splatad[mesh]'"
        ) from error


def _read(path: Path, notes: list[str]) -> list[_Soup]:
    trimesh = trimesh_module()
    if path.suffix.lower() in (".step", ".stp"):
        try:
            importlib.import_module("cascadio")
        except ImportError as error:
            raise MissingPartError(
                f"{path}: STEP files need cascadio, which is not installed; pip install cascadio, or export the part as .stl"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scene = trimesh.load_scene(str(path), process=False)
            pieces = scene.dump()
    except MemoryError as error:
        raise InputError(
            f"{path}: is too large for the memory; export it with a coarser tolerance"
        ) from error
    except Exception as error:  # a foreign file brings trimesh's readers to raise nearly anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path}: is not a mesh that can be read ({reason}); export it again") from error
    meshes = [piece for piece in pieces if isinstance(piece, trimesh.Trimesh) and len(piece.faces)]
    if not meshes:
        points = sum(len(getattr(piece, "vertices", ())) for piece in pieces)
        what = f"{points} points and no faces" if points else "no faces"
        raise InputError(
            f"{path}: has {what}; give a surface mesh (a point cloud must be meshed first, or photographed: "
            "`splatad prepare nerfstudio --points`)"
        )
    if len(meshes) > 1:
        notes.append(f"{len(meshes)} separate meshes put together as the file places them")
    return [_soup(path, mesh, notes) for mesh in meshes]


def _soup(path: Path, piece: Any, notes: list[str]) -> _Soup:
    """Geometry, colours and texture of one trimesh; a texture that is listed and not there is told."""
    vertices = np.asarray(piece.vertices, dtype=np.float64)
    faces = np.asarray(piece.faces, dtype=np.int64)
    inside = np.asarray(((faces >= 0) & (faces < len(vertices))).all(axis=1))
    if not inside.all():
        notes.append(f"{int((~inside).sum())} faces name vertices that are not there; left out")
    count = len(faces)
    colours = np.full((count, 3, 3), GREY)
    uv = np.zeros((count, 3, 2))
    texture = None
    coloured = False
    visual = piece.visual
    faces = np.where(inside[:, None], faces, 0)
    if visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors)[:, None, :3] / 255.0, 3, axis=1)
        coloured = True
    elif visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors)[faces][..., :3] / 255.0
        coloured = True
    elif visual.kind == "texture":
        material = visual.material
        image = getattr(material, "baseColorTexture", None)
        image = getattr(material, "image", None) if image is None else image
        coordinates = getattr(visual, "uv", None)
        factor = getattr(material, "baseColorFactor", None)
        if image is not None and coordinates is not None and len(coordinates) == len(vertices):
            texture = np.array(image.convert("RGB"))
            uv = np.nan_to_num(np.asarray(coordinates, dtype=np.float64)[faces])
            colours = np.ones((count, 3, 3)) * (1.0 if factor is None else np.asarray(factor)[:3] / 255.0)
            coloured = True
        else:
            if _names_a_texture(path):
                notes.append(
                    "its texture is listed and not there, or has no coordinates; drawn in plain colours"
                )
            plain = factor if factor is not None else getattr(material, "diffuse", None)
            if plain is not None:
                rgb = np.asarray(plain)[:3] / 255.0
                # Grey is what trimesh gives a material that says nothing.
                coloured = float(np.ptp(rgb)) > 0.02
                colours = np.broadcast_to(rgb if coloured else GREY, (count, 3, 3))
    return _Soup(vertices, faces[inside], colours[inside], uv[inside], texture, coloured)


def _names_a_texture(path: Path) -> bool:
    """Whether a material file beside an .obj lists a texture."""
    if path.suffix.lower() != ".obj":
        return False
    materials = path.parent.glob("*.mtl")
    return any("map_Kd" in material.read_text("utf-8", errors="replace") for material in materials)


def _cleaned(path: Path, soups: list[_Soup], notes: list[str]) -> Mesh:
    """One mesh of all, without what cannot be drawn; `notes` gains a line on each fault."""
    offsets = np.cumsum([0] + [len(soup.vertices) for soup in soups])
    vertices = np.concatenate([soup.vertices for soup in soups])
    faces = np.concatenate([soup.faces + start for soup, start in zip(soups, offsets, strict=False)])
    colours = np.concatenate([soup.corner_colours for soup in soups])
    uv = np.concatenate([soup.corner_uv for soup in soups])
    textures = tuple(soup.texture for soup in soups if soup.texture is not None)
    numbers = np.cumsum([soup.texture is not None for soup in soups]) - 1
    face_texture = np.concatenate(
        [
            np.full(len(soup.faces), number if soup.texture is not None else -1, np.int64)
            for soup, number in zip(soups, numbers, strict=True)
        ]
    )

    kept = np.arange(len(faces))
    broken = ~np.isfinite(vertices).all(axis=1) | (np.abs(vertices).max(axis=1) > 1e30)
    if broken.any():
        usable = ~broken[faces].any(axis=1)
        notes.append(
            f"{int(broken.sum())} vertices are no finite numbers; the {int((~usable).sum())} faces at them are left out"
        )
        kept = kept[usable]
        if len(kept) == 0:
            raise InputError(f"{path}: all faces hang on vertices that are no numbers; export the part again")
        vertices = np.where(broken[:, None], vertices[faces[kept[0], 0]], vertices)
    used = np.unique(faces[kept])
    renumber = np.zeros(len(vertices), np.int64)
    renumber[used] = np.arange(len(used))
    vertices, faces = vertices[used], renumber[faces[kept]]
    colours, uv, face_texture = colours[kept], uv[kept], face_texture[kept]

    before = len(faces)
    bits = MERGE_BITS
    for bits in (MERGE_BITS, *THIN_BITS) if before > MAX_FACES else (MERGE_BITS,):
        first, inverse = _grid_groups(vertices, bits)
        merged, thin = vertices[first], inverse[faces]
        whole = np.flatnonzero(_has_area(merged, thin))
        if bits != MERGE_BITS:  # faces that fell on one another
            _, single = np.unique(np.sort(thin[whole], axis=1), axis=0, return_index=True)
            whole = whole[np.sort(single)]
        if len(whole) <= MAX_FACES:
            break
    if len(whole) > MAX_FACES:
        raise InputError(
            f"{path}: has {before:,} faces, and still {len(whole):,} where those finer than 1/{2**bits} of the part are put "
            f"together; limit {MAX_FACES:,}; export it with a coarser tolerance or without its insides"
        )
    if len(whole) == 0:
        raise InputError(
            f"{path}: its {before:,} faces have no area; export the part again, in its true size"
        )
    if bits != MERGE_BITS:
        notes.append(
            f"{before:,} faces thinned to {len(whole):,}: vertices nearer than 1/{2**bits} of the part's length put together"
        )
    elif len(whole) < before:
        notes.append(f"{before - len(whole):,} of {before:,} faces have no area; left out")
    _report_topology(thin[whole], notes)
    if bits == MERGE_BITS and len(vertices) > len(merged) and path.suffix.lower() != ".stl":
        notes.append(f"{len(vertices) - len(merged):,} of {len(vertices):,} vertices doubled; taken as one")
    return Mesh(
        merged,
        thin[whole],
        smooth_normals(merged, thin[whole]),
        np.ascontiguousarray(colours[whole], dtype=np.float32),
        np.ascontiguousarray(uv[whole], dtype=np.float32),
        face_texture[whole],
        textures,
        any(soup.coloured for soup in soups),
    )


def _report_topology(faces: np.ndarray, notes: list[str]) -> None:
    """Open edges, and edges along which neighbours are wound against each other."""
    ahead = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    low, high = ahead.min(axis=1), ahead.max(axis=1)
    _, edge, count = np.unique(low * (int(faces.max()) + 1) + high, return_inverse=True, return_counts=True)
    direction = np.bincount(edge, weights=np.where(ahead[:, 0] == low, 1.0, -1.0))
    open_edges = int((count == 1).sum())
    against = int(((count == 2) & (direction != 0)).sum())
    if open_edges:
        notes.append(f"not closed: {open_edges:,} open edges; drawn from both sides, with its holes")
    if against:
        notes.append(
            f"inverted faces: {against:,} edges between faces wound against each other; drawn from both sides"
        )


def _grid_groups(points: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """For the cells of a grid of 2^bits across all points: a point of each, and each point's cell."""
    low = points.min(axis=0)
    size = float((points.max(axis=0) - low).max())
    scale = (2**bits - 1) / size if size > 0 else 0.0
    cell = np.rint((points - low) * scale).astype(np.int64)
    key = (cell[:, 0] << (2 * bits)) | (cell[:, 1] << bits) | cell[:, 2]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return first, inverse


def _cross(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    return np.cross(b - a, c - a)


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces that are more than a line, by the part's size."""
    size = float((vertices.max(axis=0) - vertices.min(axis=0)).max())
    return np.linalg.norm(_cross(vertices, faces), axis=1) > 1e-14 * size * size
