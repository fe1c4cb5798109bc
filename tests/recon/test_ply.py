"""Splat files: a round trip bit for bit, what other programs write, and what is no splat file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.errors import InputError
from recon.gaussians import Gaussians
from recon.ply import read_splats, write_splats


def _splats(n: int, degree: int) -> Gaussians:
    generator = torch.Generator().manual_seed(degree)
    shapes = {
        "means": (n, 3),
        "quats": (n, 4),
        "log_scales": (n, 3),
        "logit_opacities": (n,),
        "sh": (n, (degree + 1) ** 2, 3),
    }
    return Gaussians(**{name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()})


def _write_table(path: Path, properties: list[tuple[str, str]], table: np.ndarray, header: str = "") -> None:
    """A PLY as other programs write it; `properties` are (PLY type, name), `header` replaces the whole header."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property {kind} {name}" for kind, name in properties] + ["end_header", ""]
    path.write_bytes((header or "\n".join(lines)).encode() + table.tobytes())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splats_are_read_back_bit_for_bit(tmp_path: Path, degree: int) -> None:
    splats = _splats(7, degree)
    write_splats(tmp_path / "splats.ply", splats)
    back = read_splats(tmp_path / "splats.ply")
    assert back.sh_degree == degree
    for name, tensor in splats.tensors().items():
        read = back.tensors()[name]
        assert read.is_contiguous()
        assert torch.equal(read.view(torch.int32), tensor.view(torch.int32)), name


def test_no_splats_make_a_file_that_is_read_back(tmp_path: Path) -> None:
    write_splats(tmp_path / "none.ply", _splats(0, 2))
    back = read_splats(tmp_path / "none.ply")
    assert len(back) == 0
    assert back.sh.shape == (0, 9, 3)


def test_the_file_has_the_standard_layout(tmp_path: Path) -> None:
    splats = _splats(3, 1)
    write_splats(tmp_path / "splats.ply", splats)
    header, body = (tmp_path / "splats.ply").read_bytes().split(b"end_header\n", 1)
    names = [line.split()[-1].decode() for line in header.splitlines() if line.startswith(b"property float")]
    assert names == (
        ["x", "y", "z"]
        + [f"f_dc_{i}" for i in range(3)]
        + [f"f_rest_{i}" for i in range(9)]
        + ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    )
    row = np.frombuffer(body, "<f4").reshape(3, len(names))[1]
    value = dict(zip(names, row, strict=True))
    # Channel-major: the three red coefficients of degree 1, then green, then blue.
    assert value["f_rest_0"] == splats.sh[1, 1, 0]
    assert value["f_rest_2"] == splats.sh[1, 3, 0]
    assert value["f_rest_3"] == splats.sh[1, 1, 1]
    assert value["f_dc_2"] == splats.sh[1, 0, 2]
    assert value["rot_0"] == splats.quats[1, 0]
    assert value["scale_2"] == splats.log_scales[1, 2]


def test_a_file_with_normals_shuffled_columns_and_doubles_opens(tmp_path: Path) -> None:
    splats = _splats(4, 0)
    properties = [("double", "opacity"), ("float", "z"), ("float", "x"), ("float", "y")]
    properties += [("float", f"n{axis}") for axis in "xyz"] + [("uchar", "flag")]
    properties += [("float", f"scale_{i}") for i in range(3)] + [("float32", f"rot_{i}") for i in range(4)]
    properties += [("float", f"f_dc_{i}") for i in range(3)]
    kinds = {"double": "<f8", "float": "<f4", "float32": "<f4", "uchar": "u1"}
    table = np.zeros(4, np.dtype([(name, kinds[kind]) for kind, name in properties]))
    table["opacity"] = splats.logit_opacities
    for i, axis in enumerate("xyz"):
        table[axis] = splats.means[:, i]
        table[f"n{axis}"] = np.nan  # normals are not looked at
    for i in range(3):
        table[f"scale_{i}"] = splats.log_scales[:, i]
        table[f"f_dc_{i}"] = splats.sh[:, 0, i]
    for i in range(4):
        table[f"rot_{i}"] = splats.quats[:, i]
    path = tmp_path / "other.ply"
    _write_table(path, properties, table)
    path.write_bytes(path.read_bytes() + b"\0" * 12)  # an element that follows the vertices
    back = read_splats(path)
    for name, tensor in splats.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name


def _good(tmp_path: Path) -> bytes:
    write_splats(tmp_path / "good.ply", _splats(5, 1))
    return (tmp_path / "good.ply").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"element vertex 5", b"element vertex 6", "truncated"),
        (b"element vertex 5", b"element vertex 99999999999", "damaged"),
        (b"element vertex 5", b"element vertex " + b"9" * 5000, "damaged"),
        (b"element vertex 5", b"element vertex -5", "vertex"),
        (b"element vertex 5", b"element face 5", "vertex"),
        (b"binary_little_endian", b"ascii", "binary_little_endian"),
        (b"binary_little_endian", b"binary_big_endian", "binary_little_endian"),
        (b"property float opacity", b"property float opaqueness", "no property opacity"),
        (b"property float rot_3", b"property float other", "no property rot_3"),
        (b"property float f_rest_8\n", b"", "f_rest"),
        (b"property float f_rest_8", b"property float f_rest_x", "f_rest"),
        (b"property float z", b"property float x", "cannot be used"),
        (b"property float z", b"property list uchar int z", "cannot be used"),
        (b"property float z", b"property quadruple z", "cannot be used"),
        (b"ply\n", b"plain\n", "not a PLY"),
        (b"end_header", b"and_header", "not a PLY"),
    ],
)
def test_a_damaged_header_is_one_clear_error(tmp_path: Path, old: bytes, new: bytes, says: str) -> None:
    data = _good(tmp_path)
    assert old in data
    bad = tmp_path / "bad.ply"
    bad.write_bytes(data.replace(old, new, 1))
    with pytest.raises(InputError, match=says) as raised:
        read_splats(bad)
    assert str(raised.value).startswith(f"{bad}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["means", "quats", "log_scales", "logit_opacities", "sh"])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, field: str, value: float) -> None:
    splats = _splats(5, 1)
    getattr(splats, field).view(-1)[-1] = value
    write_splats(tmp_path / "bad.ply", splats)
    with pytest.raises(InputError, match="NaN or infinity"):
        read_splats(tmp_path / "bad.ply")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    data = _good(tmp_path)
    bad = tmp_path / "bad.ply"
    for length in (0, 3, 40, data.index(b"end_header") + 4, data.index(b"end_header") + 11, len(data) - 1):
        bad.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"bad\.ply: "):
            read_splats(bad)


def test_a_file_that_is_not_there_or_is_a_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_splats(tmp_path / "absent.ply")
    with pytest.raises(InputError, match="cannot be read"):
        read_splats(tmp_path)


def test_another_kind_of_file_is_not_taken_for_splats(tmp_path: Path) -> None:
    picture = tmp_path / "photo.ply"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(InputError, match="not a PLY"):
        read_splats(picture)
    # A point cloud is a PLY, but not of splats.
    cloud = np.zeros(3, np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4")]))
    _write_table(tmp_path / "cloud.ply", [("float", axis) for axis in "xyz"], cloud)
    with pytest.raises(InputError, match="no property f_dc_0"):
        read_splats(tmp_path / "cloud.ply")


def test_writing_leaves_no_half_file(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(InputError):
        write_splats(blocker / "splats.ply", _splats(2, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
