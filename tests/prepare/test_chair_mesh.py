"""Generated chairs as triangles: the same outline as the ray caster's, from every side."""

import numpy as np
import pytest

from prepare.generate.chair_mesh import chair_triangles, obj_text
from prepare.generate.chair_render import cast
from prepare.generate.chair_shapes import make_chair
from prepare.generate.chairs import ChairSettings, view_cameras
from prepare.mesh import load_mesh
from prepare.mesh_render import MeshPainter, surface_finder


@pytest.mark.parametrize("number", range(0, 40, 4))
def test_the_mesh_has_the_outline_and_depth_of_the_chair(number, tmp_path):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    chair = make_chair(0, number)
    (tmp_path / "model.obj").write_text(obj_text(*chair_triangles(chair)))
    mesh = load_mesh(tmp_path / "model.obj").mesh
    painter = MeshPainter(mesh, surface_finder(mesh), np.array([0.0, 1.0, 0.0]))
    for _, _, camera in view_cameras(ChairSettings(views=8, px=160)):
        ours, theirs = painter.depth(camera), cast(chair.solids(), camera).depth
        both, one = np.isfinite(ours) & np.isfinite(theirs), np.isfinite(ours) | np.isfinite(theirs)
        assert both.sum() / one.sum() > 0.97
        assert np.median(np.abs(ours[both] - theirs[both])) < 1e-3


def test_faces_look_outwards():
    chair = make_chair(0, 3)
    vertices, faces = chair_triangles(chair)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6
    assert volume > 0
