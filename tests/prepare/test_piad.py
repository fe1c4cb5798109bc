from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import look_at, to_opengl_cam_to_world
from prepare.datasets.piad import prepare_piad
from prepare.datasets.scene_folder import read_missing
from prepare.scene import load_scene


def _photo(path: Path, seed: int) -> None:
    """A blob on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((24, 32, 3), 255, dtype=np.uint8)
    image[8:16, 8:24] = np.random.default_rng(seed).integers(0, 120, (8, 16, 3))
    Image.fromarray(image).save(path)


@pytest.fixture
def valve(tmp_path: Path) -> Path:
    folder = tmp_path / "PIAD-real" / "Valve"
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    frames = []
    for index in range(4):
        position = torch.tensor([3.0, float(index), 1.0], dtype=torch.float64)
        matrix = to_opengl_cam_to_world(look_at(position, torch.zeros(3).double(), up))
        frames.append({"file_path": f"train/good/{index}.png", "transform_matrix": matrix.tolist()})
        if index < 3:
            _photo(folder / "train" / "good" / f"{index}.png", index)
    Image.new("L", (32, 24), 255).save(_made(folder / "train_mask" / "good") / "1.png")
    for name in ("test/good/0.png", "test/dent/0.png", "test/dent/1.png"):
        _photo(folder / name, 9)
    Image.new("L", (32, 24), 255).save(_made(folder / "ground_truth" / "dent") / "0_mask.png")
    document = {"fl_x": 40.0, "k1": 0.1, "w": 32, "h": 24, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_given_cameras_and_masks_are_used_and_missing_photos_named(valve: Path, tmp_path: Path) -> None:
    (written,) = prepare_piad(valve.parent, lambda name: tmp_path / "work" / name)
    scene, given = load_scene(written), load_scene(valve)
    assert written.name == "Valve"
    assert len(scene.views) == 3
    for view, original in zip(scene.views, given.views, strict=True):
        assert torch.allclose(view.camera.world_to_cam, original.camera.world_to_cam, atol=1e-6)
        assert view.distortion == original.distortion
        assert view.image_path.resolve() == original.image_path
    assert read_missing(written) == ("train/good/3.png",)

    masks = [view.mask_path for view in scene.views]
    assert masks[1] is not None
    assert masks[1].resolve() == valve / "train_mask" / "good" / "1.png"
    assert masks[0] is not None  # made from the white background
    assert not masks[0].is_symlink()


def test_test_photos_are_queries_with_their_defects(valve: Path, tmp_path: Path) -> None:
    (written,) = prepare_piad(valve, lambda name: tmp_path / "work" / name)
    queries = load_scene(written).queries
    assert [(query.label, query.mask_path is not None) for query in queries] == [
        ("dent", True),
        ("dent", False),
        ("good", False),
    ]
