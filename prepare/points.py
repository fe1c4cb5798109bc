"""Coloured point clouds: `.ply` files and COLMAP's `points3D.bin` / `points3D.txt`."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prepare.atomic_write import write_bytes
from prepare.errors import InputError

MAX_POINTS = 50_000_000
_MAX_HEADER_BYTES = 64 * 1024
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}
_COLOURS = ("red", "green", "blue")
_NORMALS = ("nx", "ny", "nz")
_HEADLIGHT = ("head_red", "head_green", "head_blue")  # ours
_COLMAP_POINT = struct.Struct("<Q3d3BdQ")  # id, position, colour, error, length of the track


@dataclass(frozen=True)
class PointCloud:
    """Points of a scene, as structure from motion or a scanner gives them."""

    positions: Float[Tensor, "n xyz=3"]  # world units, float32, all finite
    colours: Float[Tensor, "n rgb=3"] | None  # in [0, 1]; None where the file has none
    normals: Float[Tensor, "n xyz=3"] | None = (
        None  # unit; None where the file has none, or some of them are zero
    )
    # What a lamp at the camera adds to the colour where the normal points at it; it falls with the cosine, and `colours` hold
    # two thirds of it, the mean over a hemisphere. None where the file does not say, or has no normals.
    headlight: Float[Tensor, "n rgb=3"] | None = None


def read_points(path: Path) -> PointCloud:
    """The points of a `.ply` file (ASCII or binary) or of a COLMAP `points3D.bin` or `.txt`.

    Raises: InputError for a file that is missing, truncated, of another kind, or has NaN or infinite positions.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such point cloud; check the path")
    readers = {
        ".ply": _read_ply,
        ".bin": lambda path: (*_read_colmap_bin(path), None, None),
        ".txt": lambda path: (*_read_colmap_txt(path), None, None),
    }
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: unknown kind of point cloud; give a .ply file or COLMAP's points3D.bin or points3D.txt"
        )
    try:
        positions, colours, normals, headlight = readers[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    if not np.isfinite(positions).all() or np.abs(positions).max(initial=0.0) > np.finfo(np.float32).max:
        raise InputError(f"{path}: has NaN or infinite positions; export the point cloud again")
    if colours is not None and not np.isfinite(colours).all():
        raise InputError(f"{path}: has NaN or infinite colours; export the point cloud again")
    return PointCloud(
        torch.from_numpy(positions.astype(np.float32)),
        None if colours is None else torch.from_numpy(colours.astype(np.float32).clip(0.0, 1.0)),
        None if normals is None else torch.from_numpy(normals.astype(np.float32)),
        None if headlight is None else torch.from_numpy(headlight.astype(np.float32)),
    )


def write_points(path: Path, cloud: PointCloud) -> None:
    """Write a binary `.ply` that `read_points` reads: float32 positions, normals and headlight, 8-bit colours.

    Raises: InputError where it cannot be written.
    """
    columns = [(name, "<f4", cloud.positions[:, i]) for i, name in enumerate("xyz")]
    if cloud.normals is not None:
        columns += [(name, "<f4", cloud.normals[:, i]) for i, name in enumerate(_NORMALS)]
    if cloud.colours is not None:
        levels = (cloud.colours.clamp(0.0, 1.0) * 255.0).round()
        columns += [(name, "u1", levels[:, i]) for i, name in enumerate(_COLOURS)]
    if cloud.headlight is not None:
        columns += [(name, "<f4", cloud.headlight[:, i]) for i, name in enumerate(_HEADLIGHT)]
    rows = np.empty(len(cloud.positions), dtype=[(name, kind) for name, kind, _ in columns])
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    for name, kind, values in columns:
        rows[name] = values.cpu().numpy()
        header.append(f"property {'uchar' if kind == 'u1' else 'float'} {name}")
    write_bytes(path, "\n".join([*header, "end_header\n"]).encode("ascii") + rows.tobytes())


@dataclass(frozen=True)
class _PlyHeader:
    form: str  # "ascii" | "binary_little_endian" | "binary_big_endian"
    count: int  # vertices
    fields: tuple[tuple[str, str], ...]  # of a vertex: name, numpy type
    skip_rows: int  # rows before the vertices, of elements without lists
    skip_bytes: int  # the same in bytes (binary)


def _read_ply(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Positions, colours, normals and headlight."""
    with path.open("rb") as file:
        header = _read_ply_header(path, file)
        if header.form == "ascii":
            vertices = _ascii_vertices(path, file, header)
        else:
            dtype = np.dtype([(name, _BYTE_ORDERS[header.form] + kind) for name, kind in header.fields])
            left = path.stat().st_size - file.tell() - header.skip_bytes
            if left < header.count * dtype.itemsize:
                raise InputError(
                    f"{path}: is truncated, {header.count} points announced and"
                    f" {max(0, left) // dtype.itemsize} there; copy it again"
                )
            file.seek(header.skip_bytes, io.SEEK_CUR)
            vertices = np.frombuffer(file.read(header.count * dtype.itemsize), dtype=dtype)
    names = {name for name, _ in header.fields}
    positions = np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)
    normals = None
    if names.issuperset(_NORMALS):
        listed = np.stack([vertices[axis].astype(np.float64) for axis in _NORMALS], axis=1)
        length = np.linalg.norm(listed, axis=1, keepdims=True)
        # Exports of splats list normals that are all zero.
        if len(listed) and np.isfinite(length).all() and length.min() > 1e-6:
            normals = listed / length
    if not names.issuperset(_COLOURS):
        return positions, None, normals, None
    kinds = dict(header.fields)
    scales = [float(np.iinfo(kinds[name]).max) if kinds[name][0] in "iu" else 1.0 for name in _COLOURS]
    colours = np.stack([vertices[name] / scale for name, scale in zip(_COLOURS, scales, strict=True)], axis=1)
    headlight = None
    if normals is not None and names.issuperset(_HEADLIGHT):
        listed = np.stack([vertices[name].astype(np.float64) for name in _HEADLIGHT], axis=1)
        headlight = listed if np.isfinite(listed).all() else None
    return positions, colours, normals, headlight


def _read_ply_header(path: Path, file: BinaryIO) -> _PlyHeader:
    start = file.read(_MAX_HEADER_BYTES)
    end = start.find(b"end_header")
    line_end = start.find(b"\n", end)
    if not start.startswith(b"ply") or end < 0 or line_end < 0:
        raise InputError(f"{path}: is not a PLY file (no header that ends); export the point cloud again")
    file.seek(line_end + 1)

    form, elements = "", list[tuple[str, int, list[tuple[str, str]]]]()
    for line in start[:end].decode("ascii", errors="replace").splitlines()[1:]:
        match line.split():
            case ["format", form, "1.0"] if form in _BYTE_ORDERS:
                pass
            case ["element", name, number] if number.isdecimal() and len(number) < 19:
                elements.append((name, int(number), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append((name, "list"))
            case ["property", kind, name] if elements and kind in _PLY_TYPES:
                elements[-1][2].append((name, _PLY_TYPES[kind]))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise InputError(
                    f"{path}: unreadable PLY header line {line[:80]!r}; export the point cloud again"
                )

    skip_rows = skip_bytes = 0
    for name, count, fields in elements:
        kinds = dict(fields)
        if name == "vertex":
            usable = (
                form
                and len(kinds) == len(fields)
                and "list" not in kinds.values()
                and kinds.keys() >= {"x", "y", "z"}
            )
            if not usable or count > MAX_POINTS:
                raise InputError(
                    f"{path}: PLY vertices need x y z and at most {MAX_POINTS} of them,"
                    f" got {count} with {' '.join(kinds)[:80]}; export the point cloud again"
                )
            return _PlyHeader(form, count, tuple(fields), skip_rows, skip_bytes)
        if "list" in kinds.values():
            raise InputError(
                f"{path}: PLY element {name[:40]!r} with lists stands before the vertices; export it again"
            )
        skip_rows += count
        skip_bytes += count * sum(np.dtype(kind).itemsize for _, kind in fields)
    raise InputError(f"{path}: PLY file without vertices; give a point cloud")


def _ascii_vertices(path: Path, file: BinaryIO, header: _PlyHeader) -> np.ndarray:
    dtype = np.dtype([(name, "f8") for name, _ in header.fields])
    if header.count == 0:
        return np.empty(0, dtype=dtype)
    try:
        rows = np.loadtxt(
            io.TextIOWrapper(file, encoding="ascii", errors="strict"),
            skiprows=header.skip_rows,
            max_rows=header.count,
            ndmin=2,
            comments=None,
        )
    except ValueError as error:
        raise InputError(
            f"{path}: unreadable PLY vertex ({str(error)[:80]}); export the point cloud again"
        ) from error
    if rows.shape != (header.count, len(header.fields)):
        raise InputError(
            f"{path}: is truncated, {header.count} points announced and {len(rows)} there; copy it again"
        )
    vertices = np.empty(header.count, dtype=dtype)
    for column, (name, _) in enumerate(header.fields):
        vertices[name] = rows[:, column]
    return vertices


def _read_colmap_bin(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = path.read_bytes()
    truncated = InputError(f"{path}: is truncated or not COLMAP's points3D.bin; copy it again")
    if len(data) < 8:
        raise truncated
    (count,) = struct.unpack_from("<Q", data)
    if count > MAX_POINTS or 8 + count * _COLMAP_POINT.size > len(data):
        raise truncated
    positions, colours = np.empty((count, 3)), np.empty((count, 3))
    at = 8
    for index in range(count):
        if at + _COLMAP_POINT.size > len(data):
            raise truncated
        _, x, y, z, red, green, blue, _, track = _COLMAP_POINT.unpack_from(data, at)
        positions[index], colours[index] = (x, y, z), (red, green, blue)
        at += _COLMAP_POINT.size + 8 * track
    if at != len(data):
        raise truncated
    return positions, colours / 255.0


def _read_colmap_txt(path: Path) -> tuple[np.ndarray, np.ndarray]:
    positions, colours = [], []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                x, y, z, red, green, blue = (float(value) for value in line.split()[1:7])
            except ValueError as error:
                raise InputError(
                    f"{path}: line {number} is not a COLMAP point; give COLMAP's points3D.txt"
                ) from error
            positions.append((x, y, z))
            colours.append((red, green, blue))
    return np.array(positions, dtype=np.float64).reshape(-1, 3), np.array(colours).reshape(-1, 3) / 255.0
