from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from prepare.errors import InputError
from prepare.similarity import read_dataparser_transforms


def _files(tmp_path: Path, transforms: object, scene: dict[str, object]) -> tuple[Path, Path]:
    path = tmp_path / "dataparser_transforms.json"
    path.write_text(json.dumps(transforms))
    (tmp_path / "transforms.json").write_text(json.dumps(scene))
    return path, tmp_path


def _matrix(seed: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = np.random.default_rng(seed).normal(size=3)
    return matrix


@pytest.mark.parametrize("applied", [False, True])
def test_a_point_of_the_scene_comes_back_from_the_models_world(tmp_path: Path, applied: bool) -> None:
    # As nerfstudio does it: the scene's world was A times the one before; its parser turns by T and scales by s, and
    # writes T A, and s times the applied scale.
    turn, before = _matrix(1), _matrix(2)
    scale, applied_scale = 0.37, 2.5
    scene: dict[str, object] = {}
    written, written_scale = turn, scale
    if applied:
        scene = {"applied_transform": before[:3].tolist(), "applied_scale": applied_scale}
        written, written_scale = turn @ before, scale * applied_scale
    path, folder = _files(tmp_path, {"transform": written[:3].tolist(), "scale": written_scale}, scene)
    point = np.array([0.3, -1.2, 2.0])
    of_model = scale * (turn[:3, :3] @ point + turn[:3, 3])
    for where in (folder, folder / "transforms.json"):
        by = read_dataparser_transforms(path, where)
        found = by.scale * by.rotation @ torch.from_numpy(of_model) + by.translation
        np.testing.assert_allclose(found.numpy(), point, atol=1e-12)
        there = by.inverse()
        back = there.scale * there.rotation @ torch.from_numpy(point) + there.translation
        np.testing.assert_allclose(back.numpy(), of_model, atol=1e-12)


_EYE = np.eye(4)[:3].tolist()


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ({"scale": 1.0}, "transform must be a 3x4 matrix"),
        ({"transform": [[1, 2], [3]], "scale": 1.0}, "transform must be a 3x4 matrix"),
        ({"transform": np.eye(3).tolist(), "scale": 1.0}, r"transform must be a 3x4 matrix, got \[3, 3\]"),
        ({"transform": (2 * np.eye(4))[:3].tolist(), "scale": 1.0}, "not a rotation and a shift"),
        ({"transform": np.diag([1.0, 1, -1, 1])[:3].tolist(), "scale": 1.0}, "mirror image"),
        ({"transform": _EYE}, "scale must be a number above 0, got None"),
        ({"transform": _EYE, "scale": 0}, "scale must be a number above 0, got 0"),
        ({"transform": _EYE, "scale": True}, "scale must be a number above 0"),
        ([], "must hold one JSON object"),
    ],
)
def test_a_file_in_another_form_is_refused(tmp_path: Path, transforms: object, message: str) -> None:
    path, folder = _files(tmp_path, transforms, {})
    with pytest.raises(InputError, match=message):
        read_dataparser_transforms(path, folder)


def test_a_damaged_applied_transform_is_said_to_be_the_scenes(tmp_path: Path) -> None:
    path, folder = _files(tmp_path, {"transform": _EYE, "scale": 1.0}, {"applied_transform": [[1]]})
    with pytest.raises(InputError, match=r"/transforms\.json: applied_transform must be a 3x4 matrix"):
        read_dataparser_transforms(path, folder)
