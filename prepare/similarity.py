"""Similarities between worlds, and the one that nerfstudio writes beside what it trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.errors import InputError
from prepare.scene import read_json_object

_TOLERANCE = 1e-3  # nerfstudio writes float32


@dataclass(frozen=True)
class Similarity:
    """x in the new world is scale * rotation @ x + translation."""

    rotation: Float[Tensor, "3 3"]  # float64, determinant +1
    translation: Float[Tensor, "xyz=3"]  # float64, units of the new world
    scale: float  # > 0

    def inverse(self) -> Similarity:
        """The similarity that leads back."""
        return Similarity(
            self.rotation.T, -(self.rotation.T @ self.translation) / self.scale, 1.0 / self.scale
        )


def read_dataparser_transforms(path: Path, scene: Path) -> Similarity:
    """From the world of nerfstudio's model to that of the scene whose folder (or transforms.json) is `scene`.

    `path` is the dataparser_transforms.json of a training: {"transform": 3x4, "scale": s}, x' = s (transform x), counted
    from before the scene's own applied_transform and applied_scale.
    Raises: InputError where a file is not in that form, or a matrix is no rotation.
    Source: nerfstudio 1.1.5 `NerfstudioDataParser` and `DataparserOutputs.save_dataparser_transform`.
    """
    trained = _similarity(path, "transform", "scale", read_json_object(path))
    json_path = scene / "transforms.json" if scene.is_dir() else scene
    document = read_json_object(json_path) if json_path.is_file() else {}
    applied = {
        "applied_transform": document.get("applied_transform"),
        "applied_scale": document.get("applied_scale"),
    }
    if applied["applied_transform"] is not None:
        matrix = _matrix(json_path, "applied_transform", applied["applied_transform"])
        # transform @ applied_transform was written: x_model = s T A x_before, and x_scene = A x_before.
        rotation = trained.rotation @ matrix[:, :3].T
        trained = Similarity(
            rotation, trained.translation - trained.scale * (rotation @ matrix[:, 3]), trained.scale
        )
    if applied["applied_scale"] is not None:
        scale = _positive(json_path, "applied_scale", applied["applied_scale"])
        trained = Similarity(trained.rotation, trained.translation / scale, trained.scale / scale)
    return trained.inverse()


def _similarity(path: Path, matrix_key: str, scale_key: str, document: dict[str, object]) -> Similarity:
    matrix = _matrix(path, matrix_key, document.get(matrix_key))
    scale = _positive(path, scale_key, document.get(scale_key))
    return Similarity(matrix[:, :3], scale * matrix[:, 3], scale)


def _matrix(path: Path, key: str, value: object) -> Float[Tensor, "3 4"]:
    """The listed 3x4 (or 4x4) matrix, its rotation made exact."""
    try:
        matrix = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: {key} must be a 3x4 matrix; give nerfstudio's own file") from error
    if matrix.shape not in ((3, 4), (4, 4)):
        _refuse(path, f"{key} must be a 3x4 matrix, got {list(matrix.shape)} numbers")
    matrix = matrix[:3]
    rotation = matrix[:, :3]
    if not bool((rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max() < _TOLERANCE):
        _refuse(path, f"{key} is not a rotation and a shift")
    if float(torch.linalg.det(rotation)) < 0:
        _refuse(path, f"{key} is a mirror image, not a rotation (determinant -1)")
    left, _, right = torch.linalg.svd(rotation)
    return torch.cat([left @ right, matrix[:, 3:]], dim=1)


def _positive(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-12 < value < 1e12:
        _refuse(path, f"{key} must be a number above 0, got {str(value)[:40]}")
    return float(value)


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path}: {what}; give nerfstudio's own file")
