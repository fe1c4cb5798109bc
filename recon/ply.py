"""Splats in the standard 3DGS `.ply` layout, written so that other viewers open them and read back bit for bit.

Binary little endian; per splat x y z, f_dc_0..2, f_rest_* (channel-major), opacity (logit), scale_0..2 (ln),
rot_0..3 (wxyz). Normals are optional on reading and left out on writing.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from prepare.atomic_write import write_bytes
from prepare.errors import InputError
from recon.gaussians import Gaussians

MAX_SPLATS = 50_000_000
_HEADER_LIMIT = 64 * 1024
_TYPES = {
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1", "uint8": "u1",
    "char": "i1", "int8": "i1", "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
}  # fmt: skip


def write_splats(path: Path, gaussians: Gaussians) -> None:
    """Write `gaussians` to `path`, atomically."""
    n, terms = gaussians.sh.shape[:2]
    columns = [gaussians.means, gaussians.sh[:, 0]]
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"]
    if terms > 1:
        columns.append(gaussians.sh[:, 1:].transpose(1, 2).reshape(n, 3 * (terms - 1)))
        names += [f"f_rest_{i}" for i in range(3 * (terms - 1))]
    columns += [gaussians.logit_opacities[:, None], gaussians.log_scales, gaussians.quats]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    table = torch.cat([c.detach().float().cpu() for c in columns], dim=1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", "comment splatad", f"element vertex {n}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    write_bytes(path, "\n".join(header).encode("ascii") + table.tobytes())


def read_splats(path: Path) -> Gaussians:
    """The splats of a 3DGS `.ply`, harmonics of degree 0 to 3.

    Raises: InputError for a file that is missing, truncated, of another layout, or holds values that are not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a splat .ply file") from error
    end = data.find(b"end_header", 0, _HEADER_LIMIT)
    newline = data.find(b"\n", end) if end >= 0 else -1
    if not data.startswith(b"ply") or newline < 0:
        raise InputError(f"{path}: not a PLY file (no header); give a splat .ply file")
    count, row = _parse_header(path, data[:end].decode("ascii", "replace"))
    body = data[newline + 1 :]
    if len(body) < count * row.itemsize:
        raise InputError(
            f"{path}: truncated, {len(body)} bytes where {count} splats of {row.itemsize} need "
            f"{count * row.itemsize}; copy it again"
        )
    table = np.frombuffer(body, dtype=row, count=count)
    available = row.names or ()

    def columns(names: list[str]) -> torch.Tensor:
        absent = [name for name in names if name not in available]
        if absent:
            raise InputError(f"{path}: no property {absent[0]}; this is not a 3DGS splat file")
        stacked = np.stack([np.ascontiguousarray(table[name], dtype=np.float32) for name in names], axis=1)
        if not np.isfinite(stacked).all():
            raise InputError(f"{path}: NaN or infinity in {names[0]}...; export the splats again")
        return torch.from_numpy(stacked)

    rest = [f"f_rest_{i}" for i in range(sum(name.startswith("f_rest_") for name in available))]
    terms = len(rest) // 3 + 1
    if len(rest) % 3 or math.isqrt(terms) ** 2 != terms or terms > 16:
        raise InputError(f"{path}: {len(rest)} f_rest values; 0, 9, 24 or 45 are possible")
    sh = columns([f"f_dc_{i}" for i in range(3)])[:, None]
    if rest:
        sh = torch.cat([sh, columns(rest).reshape(count, 3, terms - 1).transpose(1, 2)], dim=1)
    return Gaussians(
        means=columns(["x", "y", "z"]),
        quats=columns([f"rot_{i}" for i in range(4)]),
        log_scales=columns([f"scale_{i}" for i in range(3)]),
        logit_opacities=columns(["opacity"])[:, 0].contiguous(),
        sh=sh.contiguous(),
    )


def _parse_header(path: Path, header: str) -> tuple[int, np.dtype]:
    """Number of splats and the row type of the vertex element, which must come first."""
    count = -1
    fields: list[tuple[str, str]] = []
    in_vertex = False
    for line in header.splitlines()[1:]:
        words = line.split()
        if not words or words[0] == "comment":
            continue
        if words[0] == "format" and words[1:2] != ["binary_little_endian"]:
            raise InputError(f"{path}: PLY format {' '.join(words[1:])}; save it as binary_little_endian")
        if words[0] == "element":
            in_vertex = words[1:2] == ["vertex"]
            if in_vertex and len(words) == 3 and words[2].isdigit():
                count = int(words[2][:20])  # int() refuses thousands of digits, and 20 are too many already
            elif count < 0:
                raise InputError(f"{path}: the first PLY element is not vertex; this is not a splat file")
        elif words[0] == "property" and in_vertex:
            if len(words) != 3 or words[1] not in _TYPES or words[2] in dict(fields):
                raise InputError(
                    f"{path}: PLY property {' '.join(words[1:])!r} cannot be used; export the splats again"
                )
            fields.append((words[2], _TYPES[words[1]]))
    if count < 0 or not fields:
        raise InputError(f"{path}: no vertex element in the PLY header; this is not a splat file")
    if count > MAX_SPLATS:
        raise InputError(f"{path}: {count} splats announced, more than {MAX_SPLATS}; the header is damaged")
    return count, np.dtype(fields)
