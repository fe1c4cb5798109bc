from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import Camera, look_at, to_opengl_cam_to_world
from prepare.errors import InputError, MissingPartError
from prepare.points import read_points
from prepare.scene import load_scene
from prepare.triangulate import neighbour_pairs, triangulate, triangulate_scene
from splatad.commands.prepare import Nerfstudio, run

WIDTH, HEIGHT, FOCAL = 240, 180, 220.0


def _texture(seed: int) -> torch.Tensor:
    """Blobs of several sizes over [-1.5, 1.5]², as SIFT likes them; red grows with x."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 1, 512, 512)
    for cells in (16, 32, 64, 128):
        noise = torch.rand(1, 1, cells, cells, generator=generator) - 0.5
        total += torch.nn.functional.interpolate(noise, size=512, mode="bicubic", align_corners=False)
    grey = (0.5 + 0.5 * total[0, 0]).clamp(0, 1)
    return torch.stack([0.5 * grey + 0.5 * torch.linspace(0, 1, 512)[None], grey, grey])


def _cameras() -> list[Camera]:
    lens = Camera(torch.eye(4), FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    up = torch.tensor([0.0, 1.0, 0.0])
    angles = [0.5 * index for index in range(6)]
    positions = [torch.tensor([0.9 * math.cos(a), 0.9 * math.sin(a), 3.0]) for a in angles]
    return [lens.moved(look_at(position, torch.zeros(3), up)) for position in positions]


def _plane_photo(camera: Camera, texture: torch.Tensor) -> torch.Tensor:
    """What `camera` sees of the plane z = 0, ray by ray."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    rays = torch.stack(
        [(columns - camera.cx) / camera.fl_x, (rows - camera.cy) / camera.fl_y, torch.ones_like(rows)], -1
    )
    rays = rays @ camera.world_to_cam[:3, :3]
    at = camera.centre - rays * (camera.centre[2] / rays[..., 2:])
    grid = (at[..., :2] / 1.5)[None]
    return torch.nn.functional.grid_sample(texture[None], grid, align_corners=False)[0].permute(1, 2, 0)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos of a textured plane; only a disc of radius 0.6 round the origin is the part (alpha)."""
    folder = tmp_path_factory.mktemp("scenes") / "plane"
    (folder / "images").mkdir(parents=True)
    frames = []
    positions = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, 512, 512], align_corners=False)[
        0
    ]
    disc = ((1.5 * positions).norm(dim=-1) < 0.6).float()
    texture = torch.cat([_texture(0), disc[None]])
    for index, camera in enumerate(_cameras()):
        rgba = _plane_photo(camera, texture).clamp(0, 1)
        Image.fromarray((rgba * 255).round().to(torch.uint8).numpy()).save(folder / "images" / f"{index}.png")
        matrix = to_opengl_cam_to_world(camera.world_to_cam.double()).tolist()
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": matrix})
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    return folder


def test_the_points_of_a_plane_lie_on_it_within_the_part_in_its_colours(plane: Path) -> None:
    pytest.importorskip("pycolmap")
    told = list[tuple[int, int]]()
    found = triangulate(load_scene(plane), lambda done, total: told.append((done, total)))
    positions = found.cloud.positions
    assert len(positions) > 30
    assert float(positions[:, 2].abs().median()) < 0.01
    assert float(positions[:, :2].norm(dim=1).max()) < 0.7
    assert found.median_error_px < 0.5
    assert found.median_track >= 3
    assert told[-1] == (6, 6)
    colours = found.cloud.colours
    assert colours is not None
    redder = (
        colours[:, 0] - 0.5 * colours[:, 1]
    )  # by construction a quarter at x = 0, growing by a sixth a unit
    slope = np.polyfit(positions[:, 0].numpy(), redder.numpy(), 1)
    assert slope == pytest.approx([1 / 6, 0.25], abs=0.05)


def test_the_same_photos_give_the_same_points(plane: Path) -> None:
    pytest.importorskip("pycolmap")
    first, second = (triangulate(load_scene(plane)).cloud.positions for _ in range(2))
    assert torch.equal(first, second)


def test_the_command_writes_them_into_a_scene_that_has_none(
    plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    assert run(Nerfstudio(data=plane, workspace=tmp_path, triangulate=True)) == 0
    assert "points with a median reprojection error of 0." in capsys.readouterr().out
    folder = tmp_path / "scenes" / "plane"
    scene = load_scene(folder)
    assert scene.points_path == folder / "points.ply"
    cloud = read_points(folder / "points.ply")
    assert len(cloud.positions) > 30
    assert float(cloud.positions[:, 2].abs().median()) < 0.01
    assert not (plane / "points.ply").exists()
    assert triangulate_scene(folder) is None  # it has some now


def test_photos_without_texture_are_refused(plane: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    for photo in (plane / "images").iterdir():
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (200, 200, 200)).save(tmp_path / "images" / photo.name)
    (tmp_path / "transforms.json").write_bytes((plane / "transforms.json").read_bytes())
    with pytest.raises(
        InputError, match=r"no point could be triangulated from its 6 photos.*without --triangulate"
    ):
        triangulate_scene(tmp_path)
    assert "ply_file_path" not in json.loads((tmp_path / "transforms.json").read_text())


def test_without_pycolmap_the_command_says_what_to_install(
    plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingPartError, match=r"pip install 'splatad\[photos\]'"):
        run(Nerfstudio(data=plane, workspace=tmp_path, triangulate=True))
    assert not (tmp_path / "scenes").exists()


def test_each_camera_is_paired_with_its_neighbours() -> None:
    lens = Camera(torch.eye(4), 50.0, 50.0, 20.0, 20.0, 40, 40)
    angles = torch.arange(20) * (2 * np.pi / 20)
    cameras: list[Any] = [
        lens.moved(look_at(torch.stack([a.cos(), a.sin(), torch.tensor(0.0)]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])))
        for a in angles
    ]  # fmt: skip
    pairs = neighbour_pairs(cameras, most=4)
    assert pairs == sorted({tuple(sorted((i, (i + step) % 20))) for i in range(20) for step in (1, 2)})
    assert len(neighbour_pairs(cameras[:3])) == 3
