from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.errors import InputError
from prepare.points import MAX_POINTS, PointCloud, read_points, write_points

_DATA = Path(os.environ.get("SPLATAD_TESTDATA") or Path(__file__).parents[3] / "shared" / "data")
_XYZ = "property float x\nproperty float y\nproperty float z\n"
_RGB = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
_POINTS = [((0.5, -1.0, 2.0), (255, 0, 51)), ((3.0, 4.0, -5.5), (0, 102, 255))]


def _ply(
    path: Path, form: str, body: bytes, properties: str = _XYZ + _RGB, count: int = 2, before: str = ""
) -> Path:
    header = (
        f"ply\nformat {form} 1.0\ncomment by hand\n{before}element vertex {count}\n{properties}end_header\n"
    )
    path.write_bytes(header.encode() + body)
    return path


def _check(path: Path) -> None:
    cloud = read_points(path)
    assert cloud.positions.tolist() == [list(xyz) for xyz, _ in _POINTS]
    assert cloud.colours is not None
    torch.testing.assert_close(cloud.colours, torch.tensor([rgb for _, rgb in _POINTS]) / 255)


@pytest.mark.parametrize(("form", "order"), [("binary_little_endian", "<"), ("binary_big_endian", ">")])
def test_binary_ply_gives_positions_and_colours(tmp_path: Path, form: str, order: str) -> None:
    _check(
        _ply(
            tmp_path / "p.ply",
            form,
            b"".join(struct.pack(f"{order}3f3B", *xyz, *rgb) for xyz, rgb in _POINTS),
        )
    )


def test_ascii_ply_gives_positions_and_colours(tmp_path: Path) -> None:
    rows = "\n".join(" ".join(map(str, (*xyz, *rgb))) for xyz, rgb in _POINTS)
    _check(_ply(tmp_path / "p.ply", "ascii", rows.encode() + b"\n"))


def test_other_elements_and_properties_are_skipped_and_windows_line_ends_read(tmp_path: Path) -> None:
    properties = "property double x\nproperty float confidence\nproperty double y\nproperty double z\n" + _RGB
    before = "element camera 1\nproperty int id\nproperty double focal\n"
    body = struct.pack("<id", 7, 1.5)
    body += b"".join(struct.pack("<dfdd3B", xyz[0], 0.1, *xyz[1:], *rgb) for xyz, rgb in _POINTS)
    _check(_ply(tmp_path / "p.ply", "binary_little_endian", body + b"faces", properties, before=before))
    data = (tmp_path / "p.ply").read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    (tmp_path / "p.ply").write_bytes(data[:end].replace(b"\n", b"\r\n") + data[end:])
    _check(tmp_path / "p.ply")


def test_a_cloud_without_colours_has_none_and_float_colours_are_taken_as_they_are(tmp_path: Path) -> None:
    assert read_points(_ply(tmp_path / "a.ply", "ascii", b"1 2 3\n", _XYZ, 1)).colours is None
    colours = read_points(
        _ply(tmp_path / "b.ply", "ascii", b"1 2 3 0.25 0.5 1\n", _XYZ + _RGB.replace("uchar", "float"), 1)
    ).colours
    assert colours is not None
    assert colours.tolist() == [[0.25, 0.5, 1.0]]


def _colmap_bin(tracks: tuple[int, ...] = (2, 0)) -> bytes:
    data = struct.pack("<Q", len(_POINTS))
    for number, ((xyz, rgb), track) in enumerate(zip(_POINTS, tracks, strict=True)):
        data += struct.pack("<Q3d3BdQ", number, *xyz, *rgb, 0.5, track) + b"\1" * 8 * track
    return data


def test_colmap_binary_and_text_give_the_same_points(tmp_path: Path) -> None:
    (tmp_path / "points3D.bin").write_bytes(_colmap_bin())
    _check(tmp_path / "points3D.bin")
    rows = [f"{n} {' '.join(map(str, (*xyz, *rgb)))} 0.5 1 2" for n, (xyz, rgb) in enumerate(_POINTS)]
    (tmp_path / "points3D.txt").write_text("# 3D point list\n" + "\n".join(rows) + "\n\n")
    _check(tmp_path / "points3D.txt")


def test_every_truncation_is_refused_in_one_line(tmp_path: Path) -> None:
    binary = _ply(
        tmp_path / "p.ply",
        "binary_little_endian",
        b"".join(struct.pack("<3f3B", *xyz, *rgb) for xyz, rgb in _POINTS),
    )
    for name, data in [("p.ply", binary.read_bytes()), ("points3D.bin", _colmap_bin())]:
        for length in range(len(data)):
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(InputError, match=name) as error:
                read_points(tmp_path / name)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "properties", "count", "reason"),
    [
        (b"1 2 nan\n", _XYZ, 1, "NaN"),
        (b"1 2 1e300\n", _XYZ.replace("float", "double"), 1, "infinite"),
        (b"1 2\n", _XYZ, 1, "truncated"),
        (b"1 2 3\n", _XYZ, 2, "truncated"),
        (b"1 2 x\n", _XYZ, 1, "unreadable"),
        (b"1 2 3\n", _XYZ, MAX_POINTS + 1, "at most"),
        (b"1 2 3\n", "property float x\nproperty float y\n", 1, "need x y z"),
        (b"1 2 3\n", _XYZ + "property list uchar int more\n", 1, "need x y z"),
        (b"1 2 3\n", _XYZ + "property float x\n", 1, "need x y z"),
        (b"1 2 3\n", _XYZ + "property quaternion q\n", 1, "header line"),
        (b"1 2 3\n", _XYZ, -1, "header line"),
        (b"1 2 3\n", _XYZ, 10**30, "header line"),
    ],
)
def test_a_ply_that_cannot_be_trusted_is_refused(
    tmp_path: Path, body: bytes, properties: str, count: int, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        read_points(_ply(tmp_path / "p.ply", "ascii", body, properties, count))


def test_an_element_of_absurd_size_before_the_vertices_is_refused(tmp_path: Path) -> None:
    before = f"element camera {10**17}\nproperty double focal\n"
    with pytest.raises(InputError, match="truncated"):
        read_points(_ply(tmp_path / "p.ply", "binary_little_endian", b"\0" * 24, _XYZ, 2, before))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.ply").write_bytes(b"ply\n" + b"comment x\n" * 20_000)
    (tmp_path / "text.ply").write_text("hello")
    (tmp_path / "cloud.xyz").write_text("1 2 3")
    (tmp_path / "points3D.txt").write_text("1 2 3\n")
    (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", 2**60))
    for name, reason in [
        ("endless.ply", "not a PLY"),
        ("text.ply", "not a PLY"),
        ("cloud.xyz", "unknown kind"),
        ("points3D.txt", "line 1"),
        ("points3D.bin", "truncated"),
        ("gone.ply", "no such"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_points(tmp_path / name)


def test_an_empty_cloud_has_no_points(tmp_path: Path) -> None:
    assert read_points(_ply(tmp_path / "p.ply", "ascii", b"", count=0)).positions.shape == (0, 3)
    (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", 0))
    assert read_points(tmp_path / "points3D.bin").positions.shape == (0, 3)


def test_real_clouds_have_the_counts_their_headers_announce() -> None:
    if not (_DATA / "test_colmap").is_dir() or not (_DATA / "plush").is_dir():
        pytest.skip(f"no real input at {_DATA}; set SPLATAD_TESTDATA")
    sparse = read_points(_DATA / "test_colmap" / "sparse" / "0" / "points3D.bin")
    assert sparse.positions.shape == (1443, 3)
    assert sparse.colours is not None
    cloud = read_points(_DATA / "plush" / "points3D.ply")
    assert cloud.positions.shape == (25784, 3)
    assert np.isfinite(cloud.positions.numpy()).all()


@pytest.mark.parametrize("coloured", [False, True])
def test_points_written_are_read_back(tmp_path: Path, coloured: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(50, 3, generator=generator)
    colours = torch.rand(50, 3, generator=generator) if coloured else None
    write_points(tmp_path / "cloud.ply", PointCloud(positions, colours))
    back = read_points(tmp_path / "cloud.ply")
    assert torch.equal(back.positions, positions)
    if colours is None:
        assert back.colours is None
    else:
        assert back.colours is not None
        torch.testing.assert_close(back.colours, colours, atol=0.5 / 255 + 1e-6, rtol=0)


def test_written_points_are_read_again(tmp_path: Path) -> None:
    colours = torch.randint(0, 256, (7, 3)) / 255
    normals = torch.nn.functional.normalize(torch.randn(7, 3), dim=1)
    cloud = PointCloud(torch.randn(7, 3), colours, normals, torch.rand(7, 3))
    write_points(tmp_path / "p.ply", cloud)
    found = read_points(tmp_path / "p.ply")
    assert torch.equal(found.positions, cloud.positions)
    torch.testing.assert_close(found.colours, colours)
    torch.testing.assert_close(found.normals, normals)
    assert cloud.headlight is not None
    assert found.headlight is not None
    assert torch.equal(found.headlight, cloud.headlight)
    write_points(tmp_path / "bare.ply", PointCloud(cloud.positions, None))
    assert read_points(tmp_path / "bare.ply").colours is None
    assert read_points(tmp_path / "bare.ply").normals is None
    assert read_points(tmp_path / "bare.ply").headlight is None


def test_normals_that_are_zero_as_in_exports_of_splats_are_none(tmp_path: Path) -> None:
    write_points(
        tmp_path / "p.ply",
        PointCloud(torch.randn(3, 3), None, torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 0]])),
    )
    assert read_points(tmp_path / "p.ply").normals is None
