"""Meshes from files: what is read, what is told of broken ones, what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from prepare.errors import InputError, MissingPartError
from prepare.mesh import GREY, MeshFile, load_mesh, mesh_of, smooth_normals, trimesh_module

trimesh = pytest.importorskip("trimesh")

CUBE_FACES = [
    (0, 2, 1), (0, 3, 2), (4, 5, 6), (4, 6, 7), (0, 1, 5), (0, 5, 4),
    (1, 2, 6), (1, 6, 5), (2, 3, 7), (2, 7, 6), (3, 0, 4), (3, 4, 7),
]  # fmt: skip
CUBE = [(-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1), (-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]


def write_obj(path: Path, vertices: list, faces: list) -> Path:
    lines = [f"v {x} {y} {z}" for x, y, z in vertices]
    lines += ["f " + " ".join(str(i + 1) for i in face) for face in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


def cube(tmp_path: Path, vertices: list = CUBE, faces: list = CUBE_FACES) -> MeshFile:
    return load_mesh(write_obj(tmp_path / "cube.obj", vertices, faces))


def write_stl(path: Path, corners: np.ndarray) -> Path:
    body = b"".join(
        struct.pack("<12fH", 0, 0, 0, *np.asarray(face, float).ravel().tolist(), 0) for face in corners
    )
    path.write_bytes(b"\0" * 80 + struct.pack("<I", len(corners)) + body)
    return path


def test_a_sound_cube_is_read_whole_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    file = cube(tmp_path)
    assert file.notes == ()
    assert (len(file.mesh.vertices), len(file.mesh.faces)) == (8, 12)
    assert float(file.mesh.areas.sum()) == pytest.approx(24.0)
    assert not file.mesh.coloured
    assert (file.mesh.corner_colours == np.float32(GREY)).all()


def test_an_stls_corners_are_put_together_and_its_unit_is_a_guess(tmp_path: Path) -> None:
    corners = np.array(CUBE, float)[np.array(CUBE_FACES)]
    file = load_mesh(write_stl(tmp_path / "part.STL", corners))
    assert len(file.mesh.vertices) == 8
    assert file.notes == ()
    assert file.unit == "mm"
    assert "guessed" in file.unit_source
    assert file.up == "z"


def test_units_and_axes_are_those_usual_for_the_kind_of_file(tmp_path: Path) -> None:
    assert (cube(tmp_path).unit, cube(tmp_path).up) == (None, "y")
    trimesh.creation.box().export(tmp_path / "box.glb")
    glb = load_mesh(tmp_path / "box.glb")
    assert (glb.unit, glb.up) == ("m", "y")


def test_a_scenes_instances_stand_where_the_file_places_them(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    box = trimesh.creation.box()
    scene.add_geometry(box, node_name="a")
    shift = np.eye(4)
    shift[:3, 3] = (5.0, 0.0, 0.0)
    scene.add_geometry(box, node_name="b", transform=shift)
    scene.export(tmp_path / "two.glb")
    file = load_mesh(tmp_path / "two.glb")
    np.testing.assert_allclose(file.mesh.bounds, [[-0.5, -0.5, -0.5], [5.5, 0.5, 0.5]], atol=1e-6)
    assert "2 separate meshes put together" in file.notes[0]


def test_normals_are_sharp_on_a_cube_and_round_on_a_sphere(tmp_path: Path) -> None:
    mesh = cube(tmp_path).mesh
    np.testing.assert_allclose(
        mesh.corner_normals, np.repeat(mesh.face_normals[:, None], 3, axis=1), atol=1e-6
    )
    ball = trimesh.creation.icosphere(subdivisions=3)
    found = smooth_normals(np.asarray(ball.vertices), np.asarray(ball.faces))
    exact = ball.vertices[ball.faces] / np.linalg.norm(ball.vertices[ball.faces], axis=2, keepdims=True)
    assert float((found * exact).sum(axis=2).min()) > np.cos(np.deg2rad(0.5))


def test_a_hole_is_told_by_its_open_edges(tmp_path: Path) -> None:
    (note,) = cube(tmp_path, faces=CUBE_FACES[1:]).notes
    assert "not closed: 3 open edges" in note


def test_an_inverted_face_is_told_by_the_edges_wound_against_each_other(tmp_path: Path) -> None:
    (note,) = cube(tmp_path, faces=[CUBE_FACES[0][::-1], *CUBE_FACES[1:]]).notes
    assert "inverted faces: 3 edges" in note


def test_doubled_vertices_are_taken_as_one(tmp_path: Path) -> None:
    faces = [tuple(i + 8 * (k % 2) for i in face) for k, face in enumerate(CUBE_FACES)]
    file = cube(tmp_path, vertices=CUBE + CUBE, faces=faces)
    assert len(file.mesh.vertices) == 8
    assert file.notes == ("8 of 16 vertices doubled; taken as one",)


def test_faces_at_vertices_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    file = cube(tmp_path, vertices=[*CUBE, ("nan", 0, 0)], faces=[*CUBE_FACES, (0, 1, 8)])
    assert len(file.mesh.faces) == 12
    assert np.isfinite(file.mesh.vertices).all()
    assert "1 vertices are no finite numbers; the 1 faces at them are left out" in file.notes[0]


def test_faces_without_area_are_left_out(tmp_path: Path) -> None:
    file = cube(tmp_path, faces=[*CUBE_FACES, (0, 0, 1), (2, 2, 2)])
    assert len(file.mesh.faces) == 12
    assert "2 of 14 faces have no area; left out" in file.notes


@pytest.mark.parametrize(
    ("vertices", "faces", "said"),
    [
        ([(0, 0, 0), (1, 0, 0), (2, 0, 0)], [(0, 1, 2)], "no area"),
        ([(1, 1, 1)] * 3, [(0, 1, 2)], "no area"),
        (CUBE, [], "no faces"),
        ([("nan", 0, 0)] * 3, [(0, 1, 2)], "no numbers"),
    ],
)
def test_what_leaves_nothing_to_look_at_is_refused_in_one_line(
    tmp_path: Path, vertices: list, faces: list, said: str
) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        cube(tmp_path, vertices=vertices, faces=faces)
    assert "\n" not in str(refusal.value)
    assert "cube.obj" in str(refusal.value)


def test_a_point_cloud_is_not_taken_for_a_mesh(tmp_path: Path) -> None:
    trimesh.PointCloud(np.random.rand(9, 3)).export(tmp_path / "cloud.ply")  # noqa: NPY002 -- seeded by conftest
    with pytest.raises(InputError, match="9 points and no faces"):
        load_mesh(tmp_path / "cloud.ply")


@pytest.mark.parametrize("name", ["part.stl", "part.obj", "part.ply", "part.glb"])
def test_a_file_that_is_no_mesh_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no mesh at all\n" * 20)
    with pytest.raises(InputError, match=name):
        load_mesh(tmp_path / name)


def test_other_kinds_of_file_and_missing_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part.dwg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"unknown kind.*export the part as"):
        load_mesh(tmp_path / "part.dwg")
    with pytest.raises(InputError, match="no such mesh"):
        load_mesh(tmp_path / "nowhere.stl")


def test_step_without_its_reader_names_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part.step").write_text("ISO-10303-21;\n")
    monkeypatch.setitem(__import__("sys").modules, "cascadio", None)
    with pytest.raises(MissingPartError, match="pip install cascadio"):
        load_mesh(tmp_path / "part.step")


def test_without_trimesh_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(MissingPartError, match=r"splatad\[mesh\]"):
        trimesh_module()


def test_too_many_faces_are_thinned_and_the_shape_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball = trimesh.creation.icosphere(subdivisions=5)
    ball.export(tmp_path / "ball.stl")
    monkeypatch.setattr("prepare.mesh.MAX_FACES", 8000)
    monkeypatch.setattr("prepare.mesh.THIN_BITS", (7, 5))
    file = load_mesh(tmp_path / "ball.stl")
    assert 1000 < len(file.mesh.faces) <= 8000
    assert "20,480 faces thinned to" in file.notes[0]
    assert np.abs(np.linalg.norm(file.mesh.vertices, axis=1) - 1.0).max() < 1e-5  # vertices of the ball all
    assert float(file.mesh.areas.sum()) == pytest.approx(4 * np.pi, rel=0.05)


def test_more_faces_than_thinning_helps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "ball.stl")
    monkeypatch.setattr("prepare.mesh.MAX_FACES", 10)
    with pytest.raises(InputError, match=r"1,280 faces.*limit 10; export it with a coarser tolerance"):
        load_mesh(tmp_path / "ball.stl")


def test_vertex_and_face_colours_are_kept(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.tile([255, 51, 0, 255], (8, 1))
    box.export(tmp_path / "box.ply")
    mesh = load_mesh(tmp_path / "box.ply").mesh
    assert mesh.coloured
    np.testing.assert_allclose(mesh.corner_colours, np.broadcast_to([1.0, 0.2, 0.0], (12, 3, 3)), atol=1e-6)


def test_a_texture_that_is_listed_and_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "part.mtl").write_text("newmtl paint\nmap_Kd gone.png\n")
    (tmp_path / "part.obj").write_text(
        "mtllib part.mtl\nusemtl paint\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    )
    file = load_mesh(tmp_path / "part.obj")
    assert any("texture is listed and not there" in note for note in file.notes)


def test_a_transformed_mesh_has_turned_normals_and_scaled_areas(tmp_path: Path) -> None:
    mesh = cube(tmp_path).mesh
    matrix = np.eye(4)
    matrix[:3, :3] = 3.0 * np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    moved = mesh.transformed(matrix)
    assert float(moved.areas.sum()) == pytest.approx(9 * 24.0)
    np.testing.assert_allclose(moved.corner_normals[:, 0], moved.face_normals, atol=1e-6)


def test_the_digest_tells_meshes_apart(tmp_path: Path) -> None:
    corners = np.array(CUBE, float)[np.array(CUBE_FACES)]
    grey = mesh_of(corners)
    assert grey.digest() == mesh_of(corners).digest()
    assert grey.digest() != mesh_of(corners * 1.001).digest()
    assert grey.digest() != mesh_of(corners, colours=np.full((12, 3, 3), 0.2)).digest()
