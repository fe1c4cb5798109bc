from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import focal_from_fov, from_opengl_cam_to_world, look_at, to_opengl_cam_to_world
from prepare.datasets import scene_folder
from prepare.datasets.mad_sim import draw_subset, prepare_mad_sim
from prepare.datasets.scene_folder import read_missing
from prepare.errors import InputError, UsageError
from prepare.image import read_mask, read_mask_share
from prepare.scene import load_scene, load_view_image
from splatad.commands.prepare import MadSim, run

_DATA = Path(os.environ.get("SPLATAD_TESTDATA") or Path(__file__).parents[3] / "shared" / "data")


def _pose(index: int) -> list[list[float]]:
    position = torch.tensor([3 * np.cos(index), 3 * np.sin(index), 0.1 * index], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return to_opengl_cam_to_world(look_at(position, torch.zeros(3, dtype=torch.float64), up)).tolist()  # type: ignore[no-any-return]


def _photo(path: Path, index: int) -> None:
    """A square whose colour tells the photo's number, on white."""
    image = np.full((24, 32, 3), 255, dtype=np.uint8)
    image[6:18, 8:24] = (10 * index, 80, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _class(folder: Path, views: int = 12) -> Path:
    for index in range(views):
        _photo(folder / "train" / "good" / f"{index}.png", index)
    for label, count in {"good": 2, "Burrs": 11, "Stains": 1}.items():
        for index in range(count):
            _photo(folder / "test" / label / f"{index}.png", index)
            if label != "good":
                mask = np.zeros((24, 32), dtype=np.uint8)
                mask[index, 0] = 1  # any value above 0 is a defect
                (folder / "ground_truth" / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(folder / "ground_truth" / label / f"{index}_mask.png")
    # Frames stand in the order of text sorting, as a careless tool writes them: 0, 1, 10, 11, 2, ...
    order = sorted(range(views), key=str)
    frames = [{"file_path": f"train/good/{index}.png", "transform_matrix": _pose(index)} for index in order]
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.69111, "frames": frames}))
    poses = {f"test/Burrs/{index}.png": _pose(100 + index) for index in range(11)}
    (folder / "test_poses.json").write_text(json.dumps({"camera_angle_x": 0.69111, "poses": poses}))
    return folder


def _snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    _class(tmp_path / "MAD-Sim" / "01Gorilla")
    _class(tmp_path / "MAD-Sim" / "02Unicorn", views=3)
    return tmp_path / "MAD-Sim"


def _prepare(data: Path, **options: Any) -> list[Path]:
    return prepare_mad_sim(data, lambda name: data.parent / "work" / "scenes" / name, **options)


def test_photos_keep_their_own_poses_whatever_the_order_of_names(data: Path) -> None:
    scene = load_scene(_prepare(data, classes=["01Gorilla"])[0])
    assert scene.name == "01Gorilla"
    assert len(scene.views) == 12
    for view in scene.views:
        index = int(view.image_path.stem)
        assert view.image_path.resolve() == data / "01Gorilla" / "train" / "good" / f"{index}.png"
        expected = from_opengl_cam_to_world(torch.tensor(_pose(index), dtype=torch.float64)).float()
        torch.testing.assert_close(view.camera.world_to_cam, expected, atol=1e-6, rtol=0)
        assert load_view_image(view).rgb[12, 16, 0] == pytest.approx(10 * index / 255)
        assert view.camera.fl_x == view.camera.fl_y == pytest.approx(focal_from_fov(32, 0.69111))
        assert (view.camera.cx, view.camera.cy) == (16, 12)


def test_queries_keep_their_label_mask_and_true_camera(data: Path) -> None:
    scene = load_scene(_prepare(data, classes=["01Gorilla"])[0])
    names = [query.name.removeprefix("images/test/") for query in scene.queries]
    assert names == [*(f"Burrs/{i}.png" for i in range(11)), "Stains/0.png", "good/0.png", "good/1.png"]
    for query in scene.queries:
        index = int(query.image_path.stem)
        assert query.label == query.image_path.parent.name
        assert (query.mask_path is None) == (query.label == "good")
        if query.mask_path is not None:
            assert read_mask(query.mask_path).nonzero().tolist() == [[index, 0]]
        assert (query.world_to_cam is not None) == (query.label == "Burrs")
        if query.world_to_cam is not None:
            expected = from_opengl_cam_to_world(torch.tensor(_pose(100 + index), dtype=torch.float64)).float()
            torch.testing.assert_close(query.world_to_cam, expected, atol=1e-6, rtol=0)


def test_each_view_gets_the_parts_mask(data: Path) -> None:
    scene = load_scene(_prepare(data, classes=["02Unicorn"])[0])
    part = torch.zeros(24, 32)
    part[6:18, 8:24] = 1
    for view in scene.views:
        assert view.mask_path is not None
        assert torch.equal(read_mask_share(view.mask_path), part)
        assert torch.equal(load_view_image(view).alpha, part)


def test_all_classes_are_prepared_and_one_class_folder_is_a_dataset_of_its_own(data: Path) -> None:
    assert [folder.name for folder in _prepare(data)] == ["01Gorilla", "02Unicorn"]
    assert [folder.name for folder in _prepare(data / "02Unicorn")] == ["02Unicorn"]


def test_the_dataset_is_not_changed(data: Path) -> None:
    before = _snapshot(data)
    _prepare(data)
    _prepare(data)
    assert _snapshot(data) == before


def test_copies_are_files_and_links_are_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = _prepare(data, classes=["02Unicorn"])[0] / "images" / "train" / "good" / "0.png"
    assert linked.is_symlink()
    assert linked.readlink().is_absolute()
    copied = _prepare(data, classes=["02Unicorn"], copy=True)[0] / "images" / "train" / "good" / "0.png"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (data / "02Unicorn" / "train" / "good" / "0.png").read_bytes()

    def no_links(self: Path, target: Path) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    fallback = _prepare(data, classes=["01Gorilla"])[0]
    assert not any(path.is_symlink() for path in fallback.rglob("*"))
    assert len(load_scene(fallback).views) == 12


def test_running_again_writes_no_photo_or_mask_anew(data: Path) -> None:
    folder = _prepare(data, classes=["02Unicorn"])[0]
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*.png")}
    contents = _snapshot(folder)
    _prepare(data, classes=["02Unicorn"])
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*.png")} == before
    assert {name: value[0] for name, value in _snapshot(folder).items()} == {
        n: v[0] for n, v in contents.items()
    }


def test_an_interrupted_preparation_is_no_scene_and_is_completed(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    whole = scene_folder.write_mask

    def killed(path: Path, mask: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        whole(path, mask)

    monkeypatch.setattr(scene_folder, "write_mask", killed)
    with pytest.raises(KeyboardInterrupt):
        _prepare(data, classes=["01Gorilla"])
    folder = data.parent / "work" / "scenes" / "01Gorilla"
    with pytest.raises(InputError, match=r"no transforms\.json"):
        load_scene(folder)
    monkeypatch.setattr(scene_folder, "write_mask", whole)
    _prepare(data, classes=["01Gorilla"])
    assert all(view.mask_path is not None for view in load_scene(folder).views)
    assert not list(folder.rglob(".*"))


def test_a_mask_older_than_its_photo_is_made_again(data: Path) -> None:
    folder = _prepare(data, classes=["02Unicorn"])[0]
    photo = data / "02Unicorn" / "train" / "good" / "0.png"
    image = np.full((24, 32, 3), 255, dtype=np.uint8)
    image[2:5, 2:5] = 0
    Image.fromarray(image).save(photo)
    mask = folder / "masks" / "train" / "good" / "0.png"
    os.utime(mask, ns=(0, 0))
    _prepare(data, classes=["02Unicorn"])
    assert read_mask(mask).sum() == 9


def test_missing_photos_and_masks_are_reported_and_the_rest_is_prepared(data: Path) -> None:
    (data / "01Gorilla" / "train" / "good" / "10.png").unlink()
    (data / "01Gorilla" / "ground_truth" / "Stains" / "0_mask.png").unlink()
    folder = _prepare(data, classes=["01Gorilla"])[0]
    scene = load_scene(folder)
    assert len(scene.views) == 11
    assert {int(view.image_path.stem) for view in scene.views} == set(range(12)) - {10}
    assert set(read_missing(folder)) == {"train/good/10.png", "ground_truth/Stains/0_mask.png"}


def test_subset_is_seeded_and_of_the_asked_size(data: Path) -> None:
    def names(**options: Any) -> list[str]:
        scene = load_scene(_prepare(data, classes=["01Gorilla"], **options)[0])
        assert len(scene.queries) == 14  # every test photo stays
        return [view.name for view in scene.views]

    assert len(names(subset=0.5)) == 6
    assert names(subset=0.5, seed=3) == names(subset=0.5, seed=3)
    assert len({tuple(names(subset=0.5, seed=seed)) for seed in range(4)}) > 1
    assert len(names(subset=0.001)) == 1
    assert names(subset=1.0) == names()
    for wrong in (0.0, -0.2, 1.5, float("nan")):
        with pytest.raises(UsageError, match="subset"):
            names(subset=wrong)


def test_of_one_seed_a_smaller_subset_lies_inside_a_larger_one() -> None:
    photos = [PurePosixPath(f"train/good/{index}.png") for index in range(210)]
    for seed in range(3):
        draws = [set(draw_subset(photos, share, seed)) for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
        assert [len(draw) for draw in draws] == [42, 84, 126, 168, 210]
        assert all(small < large for small, large in itertools.pairwise(draws))
    assert len({frozenset(draw_subset(photos, 0.2, seed)) for seed in range(20)}) == 20


def test_the_order_of_the_photos_does_not_change_which_are_drawn(data: Path) -> None:
    first = load_scene(_prepare(data, classes=["01Gorilla"], subset=0.5)[0])
    listed = data / "01Gorilla" / "transforms.json"
    document = json.loads(listed.read_text())
    document["frames"].reverse()
    listed.write_text(json.dumps(document))
    again = load_scene(_prepare(data, classes=["01Gorilla"], subset=0.5)[0])
    assert {view.name for view in again.views} == {view.name for view in first.views}
    poses = {view.name: view.camera.world_to_cam for view in first.views}
    assert all(torch.equal(view.camera.world_to_cam, poses[view.name]) for view in again.views)


def test_every_photo_is_drawn_about_as_often_as_the_share_says() -> None:
    photos = [PurePosixPath(f"train/good/{index}.png") for index in range(50)]
    counts = Counter(photo for seed in range(400) for photo in draw_subset(photos, 0.2, seed))
    # 400 draws at 0.2: 80, standard deviation 8; 5 of them for the extreme of 50
    assert all(40 < counts[photo] < 120 for photo in photos)


def test_a_subsets_scene_is_called_after_its_share_and_seed(data: Path) -> None:
    def folder(**options: Any) -> str:
        return _prepare(data, classes=["01Gorilla"], **options)[0].name

    assert folder() == folder(subset=1.0) == "01Gorilla"
    assert folder(subset=0.2) == "01Gorilla-20"
    assert folder(subset=0.07) == "01Gorilla-7"
    assert folder(subset=0.2, seed=1) == "01Gorilla-20-seed1"
    assert folder(subset=0.2, name="sparse") == "sparse"
    assert [one.name for one in _prepare(data, subset=0.4)] == ["01Gorilla-40", "02Unicorn-40"]
    with pytest.raises(UsageError, match="--name sparse: is for one class, got 2"):
        _prepare(data, name="sparse")


def test_the_command_hands_on_share_seed_and_name(data: Path, tmp_path: Path) -> None:
    shared = {"data": data, "class_": ("01Gorilla",), "workspace": tmp_path / "ws"}
    assert run(MadSim(**shared, subset=0.5, subset_seed=2)) == 0
    assert run(MadSim(**shared, subset=0.5, name="half")) == 0
    scenes = {folder.name: load_scene(folder) for folder in (tmp_path / "ws/scenes").iterdir()}
    assert set(scenes) == {"01Gorilla-50-seed2", "half"}
    photos = [PurePosixPath(f"train/good/{index}.png") for index in range(12)]
    for name, seed in (("01Gorilla-50-seed2", 2), ("half", 0)):
        drawn = {photo.name for photo in draw_subset(photos, 0.5, seed)}
        assert {Path(view.name).name for view in scenes[name].views} == drawn


def test_an_unknown_class_is_a_usage_error_that_offers_the_nearest(data: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 01Gorilla") as error:
        _prepare(data, classes=["gorila"])
    assert error.value.exit_status == 2
    with pytest.raises(UsageError, match="choose from 01Gorilla, 02Unicorn"):
        _prepare(data, classes=["Zebra"])
    assert not (data.parent / "work").exists()


def test_folders_that_are_not_the_dataset_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        _prepare(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no MAD-Sim class"):
        _prepare(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"camera_angle_x": None}, "camera_angle_x"),
        ({"camera_angle_x": 9}, "camera_angle_x"),
        ({"frames": []}, "no frames"),
        ({"frames": [{"file_path": "../x.png", "transform_matrix": np.eye(4).tolist()}]}, "leads out"),
        ({"frames": [{"file_path": "x.png", "transform_matrix": np.ones((4, 4)).tolist()}]}, "0 0 0 1"),
        (
            {"frames": [{"file_path": "x.png", "transform_matrix": np.eye(4).tolist()}]},
            "none of its listed photos",
        ),
    ],
)
def test_a_broken_transforms_file_is_refused_and_leaves_no_scene(
    data: Path, change: dict[str, Any], reason: str
) -> None:
    path = data / "02Unicorn" / "transforms.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=reason) as error:
        _prepare(data, classes=["02Unicorn"])
    assert "\n" not in str(error.value)
    assert not (data.parent / "work" / "scenes" / "02Unicorn" / "transforms.json").exists()


def test_a_scene_is_never_written_over_something_else(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="over the dataset"):
        prepare_mad_sim(data, lambda name: data / name, classes=["02Unicorn"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").touch()
    with pytest.raises(UsageError, match="did not write"):
        prepare_mad_sim(data, lambda name: foreign, classes=["02Unicorn"])
    _prepare(data, classes=["02Unicorn"])
    _class(tmp_path / "other" / "02Unicorn", views=2)
    with pytest.raises(UsageError, match="was prepared from"):
        prepare_mad_sim(tmp_path / "other", lambda name: tmp_path / "work" / "scenes" / name)
    assert len(load_scene(tmp_path / "work" / "scenes" / "02Unicorn").views) == 3


def test_progress_ends_at_its_total(data: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    _prepare(data, classes=["02Unicorn"], progress=lambda *report: seen.append(report))
    total = 3 * 2 + 14
    assert sorted(seen) == [("02Unicorn", done, total) for done in range(1, total + 1)]


def test_the_command_prints_what_it_wrote_and_what_to_type_next(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "01Gorilla" / "train" / "good" / "10.png").unlink()
    workspace = tmp_path / "ws"
    assert run(MadSim(data=data, class_=("01Gorilla",), workspace=workspace)) == 0
    printed = capsys.readouterr().out
    assert (
        "01Gorilla: 11 views of 32 x 24, 11 foreground masks, 14 queries (11 Burrs, 1 Stains, 2 good)"
        in printed
    )
    assert "12 defect masks, 11 true cameras" in printed
    assert "missing: 1 listed files are not there (train/good/10.png)" in printed
    assert f"written to {workspace / 'scenes' / '01Gorilla'}" in printed
    assert f"splatad fit --class 01Gorilla --workspace {workspace}" in printed


def test_the_real_class_gives_96_views_and_46_queries_with_truth(tmp_path: Path) -> None:
    if not (_DATA / "mad_car").is_dir():
        pytest.skip(f"no real input at {_DATA / 'mad_car'}; set SPLATAD_TESTDATA")
    folder = prepare_mad_sim(_DATA / "mad_car", lambda name: tmp_path / name)[0]
    scene = load_scene(folder)
    assert scene.name == "mad_car"
    assert len(scene.views) == 96
    assert scene.views[0].camera.fl_x == pytest.approx(555.556, abs=1e-2)
    assert sum(view.mask_path is not None for view in scene.views) == 96
    assert sum(query.label == "good" for query in scene.queries) == 16
    assert sum(query.mask_path is not None for query in scene.queries) == 30
    assert all(query.world_to_cam is not None for query in scene.queries)
    # Every camera stands on the sphere of radius 3 and looks at the origin.
    for view in scene.views:
        assert abs(float(view.camera.centre.norm()) - 3) < 1e-4
        assert (view.camera.project(torch.zeros(1, 3))[0, :2] - 200).abs().max() < 1e-2
