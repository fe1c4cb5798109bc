from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.ndimage import map_coordinates, zoom

from prepare.camera import Camera, look_at
from prepare.datasets.photos import find_photos, prepare_photos
from prepare.errors import InputError, MissingPartError, UsageError
from prepare.image import read_mask
from prepare.points import read_points
from prepare.scene import load_scene
from prepare.structure_from_motion import SfmConfig, SfmPhoto, reconstruct
from splatad.commands.prepare import Photos, run

_WIDTH, _HEIGHT, _FILM_MM = 320, 240, 35.0
_FOCAL_PX = _FILM_MM / math.hypot(36, 24) * math.hypot(_WIDTH, _HEIGHT)
_CORNERS = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)  # an edge of 2 units


def _camera(azimuth_deg: float, elevation_deg: float) -> Camera:
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    position = 6.0 * torch.tensor(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ],
        dtype=torch.float64,
    )
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    world_to_cam = look_at(position, torch.zeros(3, dtype=torch.float64), up)
    return Camera(world_to_cam, _FOCAL_PX, _FOCAL_PX, _WIDTH / 2, _HEIGHT / 2, _WIDTH, _HEIGHT)


def _textures() -> list[np.ndarray]:
    """Smooth random patterns for the cube's six faces and the floor."""
    rng = np.random.default_rng(0)
    return [zoom(rng.uniform(0, 1, (24, 24)), 12, order=3).clip(0, 1) for _ in range(6)] + [
        zoom(rng.uniform(0, 1, (80, 80)), 6, order=3).clip(0, 1)
    ]


def _render(
    camera: Camera, textures: list[np.ndarray], half: float = 5.0, beneath: np.ndarray | None = None
) -> np.ndarray:
    """A patterned cube with corners at +-1 on a patterned floor at z = -1, by casting a ray through each pixel.

    The floor reaches to +-`half`; behind it is `beneath`, grey in [0, 1], or one grey.
    """
    v, u = np.mgrid[0:_HEIGHT, 0:_WIDTH] + 0.5
    rays = np.stack([(u - camera.cx) / camera.fl_x, (v - camera.cy) / camera.fl_y, np.ones_like(u)], axis=-1)
    rays = rays @ camera.world_to_cam[:3, :3].numpy()
    origin = camera.centre.numpy()
    first, second = (-1 - origin) / rays, (1 - origin) / rays
    near, far = np.minimum(first, second), np.maximum(first, second)
    enters = near.max(axis=-1)
    on_cube = (enters < far.min(axis=-1)) & (enters > 0)
    grey = np.full((_HEIGHT, _WIDTH), 0.5) if beneath is None else beneath.copy()

    def paint(mask: np.ndarray, at: np.ndarray, texture: np.ndarray, reach: float) -> None:
        index = (at / reach * 0.5 + 0.5) * (np.array(texture.shape) - 1)
        grey[mask] = map_coordinates(texture, index.T, order=1, mode="nearest")

    with np.errstate(divide="ignore", invalid="ignore"):
        down = (-1 - origin[2]) / rays[..., 2]
    hit = origin + rays * down[..., None]
    floor = ~on_cube & (down > 0) & (np.abs(hit[..., :2]).max(axis=-1) < half)
    paint(floor, hit[floor][:, :2], textures[6], 5.0)
    hit = origin + rays * enters[..., None]
    axis = near.argmax(axis=-1)
    for side in range(6):
        mask = on_cube & (axis == side // 2) & ((rays[..., side // 2] > 0) == (side % 2 == 0))
        others = [other for other in range(3) if other != side // 2]
        paint(mask, hit[mask][:, others], textures[side], 1.0)
    return (grey * 255).round().astype(np.uint8)


def _save(path: Path, grey: np.ndarray, *, turned: bool = False) -> None:
    """A JPEG as a phone writes it: with its focal length, and on its side with a note of that."""
    image = Image.fromarray(grey).convert("RGB")
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Phone"
    exif.get_ifd(0x8769)[0xA405] = int(_FILM_MM)
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=97, exif=exif)


@dataclass(frozen=True)
class Cube:
    folder: Path
    cameras: dict[str, Camera]


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """10 photos of the cube on its floor; one is stored on its side."""
    folder = tmp_path_factory.mktemp("cube")
    textures = _textures()
    cameras = {}
    for index in range(10):
        camera = _camera(14.0 * index, 30.0 if index % 2 else 40.0)
        cameras[f"p{index}.jpg"] = camera
        _save(folder / f"p{index}.jpg", _render(camera, textures), turned=index == 4)
    return Cube(folder, cameras)


def _mark(name: str, camera: Camera) -> str:
    (u, v), (u2, v2) = camera.project(_CORNERS)[:, :2].tolist()
    return f"{name}:{u},{v}:{u2},{v2}"


@pytest.fixture(scope="module")
def scene(cube: Cube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cube's photos prepared, with a double, a damaged file, two queries and a known length of 50 mm."""
    pytest.importorskip("pycolmap", minversion="4")
    data = tmp_path_factory.mktemp("data") / "cube"
    for name in cube.cameras:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes((cube.folder / name).read_bytes())
    (data / "p2_again.jpg").write_bytes((cube.folder / "p2.jpg").read_bytes())
    (data / "q broken.jpg").write_bytes((cube.folder / "p2.jpg").read_bytes()[:400])
    for label in ("good", "stain"):
        _save(data / "inspect" / label / "1.jpg", _render(_camera(5, 35), _textures()))
    work = tmp_path_factory.mktemp("work")
    (written,) = prepare_photos(
        data,
        lambda name: work / name,
        queries=data / "inspect",
        length_mm=50.0,
        between=[_mark(name, cube.cameras[name]) for name in ("p0.jpg", "p3.jpg")],
    )
    return written


def test_every_photo_is_registered_and_its_camera_is_the_true_one(scene: Path, cube: Cube) -> None:
    views = {Path(view.name).name: view for view in load_scene(scene).views}
    assert views.keys() == cube.cameras.keys()
    # The scene's world is the true one turned about z, scaled (6 units to 3): the first photo is at azimuth 0.
    for name, camera in cube.cameras.items():
        found = views[name].camera
        turn = found.world_to_cam[:3, :3].double().T @ camera.world_to_cam[:3, :3]
        assert float(turn[2, 2]) > math.cos(math.radians(1.0)), name  # up is up
        assert float((found.centre.double() - 0.5 * camera.centre).norm()) < 0.06, name  # 2 % of the distance
        assert found.fl_x == pytest.approx(_FOCAL_PX, rel=0.03)
    # Among themselves, whatever the world: the turn between two photos is the true one.
    first = "p0.jpg"
    for name, camera in cube.cameras.items():
        ours = views[name].camera.world_to_cam[:3, :3] @ views[first].camera.world_to_cam[:3, :3].T
        true = camera.world_to_cam[:3, :3] @ cube.cameras[first].world_to_cam[:3, :3].T
        angle = math.acos(min(1.0, (float(torch.trace(ours.double() @ true.T)) - 1) / 2))
        assert math.degrees(angle) < 0.3, name


def test_the_known_length_gives_millimetres(scene: Path) -> None:
    # The edge is 2 of 6 units to the camera, so 1 of the scene's: 50 mm.
    assert load_scene(scene).scale_to_mm == pytest.approx(50.0, rel=0.02)


def test_the_cloud_lies_on_the_cube_and_the_floor_and_has_their_colours(scene: Path) -> None:
    points_path = load_scene(scene).points_path
    assert points_path is not None
    cloud = read_points(points_path)
    assert cloud.colours is not None
    at = cloud.positions * 2  # in the true units, up to a small turn
    near_cube = (at.abs().amax(dim=1) - 1).abs() < 0.06
    near_floor = (at[:, 2] + 1).abs() < 0.06
    assert len(at) > 300
    assert float((near_cube | near_floor).float().mean()) > 0.95
    assert float((cloud.colours.amax(1) - cloud.colours.amin(1)).median()) < 0.05  # the patterns are grey
    assert float(cloud.colours.std()) > 0.1


def test_what_was_left_out_and_what_is_missing_is_written(scene: Path) -> None:
    record = json.loads((scene / "prepare.json").read_text())
    assert record["complete"] is True
    assert (record["photos"], record["registered"], record["not_registered"]) == (12, 10, [])
    reasons = {one["name"]: one["reason"] for one in record["dropped"]}
    assert reasons.keys() == {"p2_again.jpg", "q broken.jpg"}
    assert reasons["p2_again.jpg"] == "double of p2.jpg"
    assert reasons["q broken.jpg"].startswith("unreadable: ")
    assert record["summary"][0] == "left out: 1 double, 1 unreadable (p2_again.jpg, q broken.jpg)"
    assert record["summary"][1] == (
        "10 of 10 registered; no photo from below; no photo from above;"
        " no photo in 234 of the 360 degrees around, between p9.jpg and p0.jpg"
    )


def test_queries_keep_their_folders_label_and_are_no_views(scene: Path) -> None:
    queries = load_scene(scene).queries
    assert [(query.name, query.label) for query in queries] == [
        ("queries/good/1.jpg", "good"),
        ("queries/stain/1.jpg", "stain"),
    ]


def test_a_second_run_uses_what_is_there_and_writes_the_same(
    scene: Path, cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prepare.structure_from_motion as sfm

    source = Path(json.loads((scene / "prepare.json").read_text())["source"])
    before = (scene / "transforms.json").read_bytes()

    def not_again(*_: object) -> None:
        raise AssertionError("features were extracted again")

    monkeypatch.setattr(sfm._Work, "extract", not_again)
    marks = [_mark(name, cube.cameras[name]) for name in ("p0.jpg", "p3.jpg")]
    told: list[str] = []
    prepare_photos(
        source,
        lambda name: scene.parent / name,
        queries=source / "inspect",
        length_mm=50.0,
        between=marks,
        progress=lambda name, done, total: told.append(name),
    )
    assert (scene / "transforms.json").read_bytes() == before
    assert set(told) == {"cube: photos", "cube: colours"}


def _sfm_photos(cube: Cube, names: list[str]) -> list[SfmPhoto]:
    return [SfmPhoto(name, cube.folder / name, "one", _FOCAL_PX) for name in names]


@pytest.mark.slow
def test_photos_matched_with_look_alikes_alone_are_registered_in_any_order(
    cube: Cube, tmp_path: Path
) -> None:
    names = [f"p{index}.jpg" for index in (5, 0, 8, 3, 1, 9, 4, 7, 2, 6)]
    config = SfmConfig(exhaustive_up_to=3, neighbours=1, alike=3)
    found = reconstruct(_sfm_photos(cube, names), tmp_path / "sfm", config=config)
    assert [photo.name for photo in found.photos] == names
    assert found.pairs < 45  # of all with all


@pytest.mark.slow
def test_where_one_mapper_registers_too_few_the_others_are_tried_and_the_first_of_equals_counts(
    cube: Cube, tmp_path: Path
) -> None:
    told: list[str] = []
    found = reconstruct(
        _sfm_photos(cube, list(cube.cameras)),
        tmp_path / "sfm",
        config=SfmConfig(enough=1.5),
        progress=lambda what, done, total: told.append(what),
    )
    assert "cameras, all at once" in told
    assert (len(found.photos), found.mapper) == (10, "incremental")


@pytest.mark.slow
def test_the_global_mapper_finds_the_same_cameras(
    cube: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prepare.structure_from_motion as sfm

    monkeypatch.setattr(sfm._Work, "_incremental", lambda *_, **__: {})
    found = reconstruct(_sfm_photos(cube, list(cube.cameras)), tmp_path / "sfm")
    assert (len(found.photos), found.mapper) == (10, "global")
    for one, other in itertools.combinations(found.photos, 2):
        ours = one.camera.world_to_cam[:3, :3] @ other.camera.world_to_cam[:3, :3].T
        a, b = (cube.cameras[photo.name].world_to_cam[:3, :3] for photo in (one, other))
        angle = math.acos(min(1.0, (float(torch.trace(ours @ (a @ b.T).T)) - 1) / 2))
        assert math.degrees(angle) < 0.5, (one.name, other.name)


@pytest.mark.slow
def test_the_same_photos_give_the_same_scene_byte_for_byte(cube: Cube, tmp_path: Path) -> None:
    written = []
    for run_number in range(2):
        (folder,) = prepare_photos(cube.folder, lambda name: tmp_path / str(run_number) / name)  # noqa: B023
        written.append([(folder / file).read_bytes() for file in ("transforms.json", "points.ply")])
    assert written[0] == written[1]


def _turntable(folder: Path, count: int = 36) -> tuple[list[Camera], list[np.ndarray]]:
    """Photos from one place of the cube on a board that turns with it, before clutter; noise, and 2 % of flicker.

    The cameras are those that the cube sees; the masks are True on cube and board.
    """
    rng = np.random.default_rng(4)
    textures, clutter = _textures(), zoom(rng.uniform(0, 1, (30, 40)), 8, order=3).clip(0, 1)
    cameras, masks = [], []
    for index in range(count):
        cameras.append(_camera(360.0 / count * index, 32.0))
        black, white = (
            _render(cameras[-1], textures, 1.5, np.full((_HEIGHT, _WIDTH), v)) for v in (0.0, 1.0)
        )
        masks.append(black == white)
        photo = _render(cameras[-1], textures, 1.5, clutter) * (1 + 0.02 * rng.standard_normal())
        noisy = photo + 2.5 * rng.standard_normal(photo.shape)
        _save(folder / f"{index}.jpg", noisy.clip(0, 255).round().astype(np.uint8))
    return cameras, masks


@pytest.mark.slow
def test_a_part_that_turned_before_a_camera_that_stood_still_gets_its_cameras_and_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    cameras, masks = _turntable(tmp_path / "bench")
    assert run(Photos(data=tmp_path / "bench", workspace=tmp_path / "work")) == 0
    assert "the camera stood still in one place while the part turned: 36 masks" in capsys.readouterr().out
    views = {int(Path(view.name).stem): view for view in load_scene(tmp_path / "work/scenes/bench").views}
    assert len(views) >= 34
    first = min(views)
    overlap = []
    for index, view in views.items():
        ours = view.camera.world_to_cam[:3, :3] @ views[first].camera.world_to_cam[:3, :3].T
        true = cameras[index].world_to_cam[:3, :3] @ cameras[first].world_to_cam[:3, :3].T
        angle = math.acos(max(-1.0, min(1.0, (float(torch.trace(ours.double() @ true.T)) - 1) / 2)))
        assert math.degrees(angle) < 1.0, index
        assert view.mask_path is not None
        found = read_mask(view.mask_path).numpy()
        overlap.append((found & masks[index]).sum() / (found | masks[index]).sum())
    assert np.median(overlap) > 0.93


@pytest.mark.slow
def test_a_video_round_the_part_goes_through_the_whole_command(
    cube: Cube, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as imageio

    frames = []
    for name in cube.cameras:
        with Image.open(cube.folder / name) as photo:
            frames.append(np.asarray(ImageOps.exif_transpose(photo)))
    imageio.imwrite(
        tmp_path / "round.mp4", np.stack(frames), plugin="FFMPEG", fps=2, codec="libx264", quality=10
    )
    assert run(Photos(data=tmp_path / "round.mp4", workspace=tmp_path / "work")) == 0
    assert "10 of 10 registered" in capsys.readouterr().out
    views = load_scene(tmp_path / "work" / "scenes" / "round").views
    assert [Path(view.name).name for view in views] == [f"frame_{index:06d}.jpg" for index in range(10)]
    # Among themselves, whatever the world: the turn from frame to frame is the true one.
    true = list(cube.cameras.values())
    for index in range(9):
        ours = views[index + 1].camera.world_to_cam[:3, :3] @ views[index].camera.world_to_cam[:3, :3].T
        theirs = true[index + 1].world_to_cam[:3, :3] @ true[index].world_to_cam[:3, :3].T
        angle = math.acos(min(1.0, (float(torch.trace(ours.double() @ theirs.T)) - 1) / 2))
        assert math.degrees(angle) < 0.5, index


@pytest.mark.slow
def test_real_photos_of_a_phone_give_the_cameras_that_came_with_them(testdata: Path, tmp_path: Path) -> None:
    (folder,) = prepare_photos(
        testdata / "test_colmap" / "dense" / "0" / "images", lambda name: tmp_path / name
    )
    record = json.loads((folder / "prepare.json").read_text())
    assert record["registered"] >= 21
    assert record["reprojection_error_px"] < 1.0


# -------------------------------------------------------------------------------------------------- what can go wrong


def _prepare(data: Path, tmp_path: Path, **flags: Any) -> list[Path]:
    return prepare_photos(data, lambda name: tmp_path / "work" / name, **flags)


def _noise(path: Path, seed: int, size: tuple[int, int] = (160, 120)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)).resize(size).save(
        path
    )


def test_photos_that_do_not_overlap_say_so(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    for index in range(4):
        _noise(tmp_path / "data" / f"{index}.png", index, (320, 240))
    with pytest.raises(
        InputError, match=r"no two of them overlap; take photos all round in steps of about 10"
    ):
        _prepare(tmp_path / "data", tmp_path)
    assert not (tmp_path / "work" / "data" / "transforms.json").exists()


def test_photos_without_detail_say_so(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    for index in range(3):
        image = Image.new("RGB", (160, 120), (40 + 60 * index, 90, 200))
        (tmp_path / "data").mkdir(exist_ok=True)
        image.save(tmp_path / "data" / f"{index}.png")
    with pytest.raises(
        InputError, match=r"too little detail \(median 0 features\); put the part on a printed page"
    ):
        _prepare(tmp_path / "data", tmp_path, keep_all=True)


def test_one_photo_is_too_few(tmp_path: Path) -> None:
    _noise(tmp_path / "data" / "a.png", 0)
    with pytest.raises(InputError, match=r"holds one photo only, a\.png; take 20 to 60 all round"):
        _prepare(tmp_path / "data", tmp_path)


def test_identical_photos_say_so(tmp_path: Path) -> None:
    for index in range(4):
        _noise(tmp_path / "data" / f"{index}.png", 0)
    with pytest.raises(InputError, match="all 4 photos show the same picture; move the camera"):
        _prepare(tmp_path / "data", tmp_path)


def test_photos_that_cannot_be_read_name_the_first(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for index in range(3):
        (tmp_path / "data" / f"{index}.jpg").write_bytes(b"not a photo")
    with pytest.raises(
        InputError, match=r"none of its 3 photos can be read; the first: .*0\.jpg: is not an image"
    ):
        _prepare(tmp_path / "data", tmp_path)


def test_an_empty_folder_and_none_at_all_say_so(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(
        InputError, match=r"no photos in it \(looked for \.png.*\); give the folder that holds them"
    ):
        _prepare(tmp_path / "data", tmp_path)
    with pytest.raises(InputError, match="no such folder or video"):
        _prepare(tmp_path / "none", tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="is one file and no video"):
        _prepare(tmp_path / "a.txt", tmp_path)


def test_without_pycolmap_the_command_that_brings_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        _noise(tmp_path / "data" / f"{index}.png", index)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingPartError, match=r"pip install 'splatad\[photos\]'"):
        _prepare(tmp_path / "data", tmp_path)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"length_mm": 10.0}, "--length-mm and --between: belong together"),
        ({"between": ["a.jpg:1,2:3,4"]}, "--length-mm and --between: belong together"),
        ({"length_mm": 10.0, "between": ["a.jpg"]}, "must be PHOTO:u,v:u2,v2"),
        ({"length_mm": -1.0, "between": ["a.jpg:1,2:3,4"]}, "--length-mm: must be above 0"),
        ({"scale_to_mm": 0.0}, "--scale-to-mm: must be above 0"),
        (
            {"scale_to_mm": 2.0, "length_mm": 1.0, "between": ["a.jpg:1,2:3,4"]},
            "says the scale a second time",
        ),
    ],
)
def test_a_scale_that_is_half_given_is_refused_before_anything_is_read(
    tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _prepare(tmp_path / "not there", tmp_path, **flags)


def test_photos_are_found_in_subfolders_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in (
        "b/10.jpg",
        "b/2.HEIC",
        "a.png",
        ".hidden/x.png",
        "b/.x.png",
        "queries/good/1.png",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    found = find_photos(tmp_path, without=tmp_path / "queries")
    assert [path.as_posix() for path in found] == ["a.png", "b/2.HEIC", "b/10.jpg"]


def test_photos_of_several_sizes_without_exif_have_a_lens_each_and_a_folder_of_one_size_shares_its(
    tmp_path: Path,
) -> None:
    from prepare.datasets.photos import _lenses

    sizes = {"a/1.png": (40, 30), "a/2.png": (30, 40), "b/1.png": (40, 30), "b/2.png": (44, 30)}
    for seed, (name, size) in enumerate(sizes.items()):
        _noise(tmp_path / name, seed, size)
    _save(tmp_path / "b" / "3.jpg", np.zeros((30, 40), dtype=np.uint8))
    _save(tmp_path / "b" / "4.jpg", np.zeros((30, 40), dtype=np.uint8))
    names = [*sizes, "b/3.jpg", "b/4.jpg"]

    lenses = _lenses({name: tmp_path / name for name in names}, is_video=False)

    assert [lenses[name][0] for name in names] == [
        "a", "a", "photo b/1.png", "photo b/2.png", "b: Maker Phone ? 35.00", "b: Maker Phone ? 35.00",
    ]  # fmt: skip
    assert lenses["a/1.png"][1] is None
    assert lenses["b/3.jpg"][1] == pytest.approx(35.0 / math.hypot(36, 24) * 50.0)


def test_the_command_prints_the_share_and_the_sides(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(json.loads((scene / "prepare.json").read_text())["source"])
    work = scene.parent / "ws"
    (work / "scenes").mkdir(parents=True, exist_ok=True)
    if not (work / "scenes" / "cube").exists():
        (work / "scenes" / "cube").symlink_to(scene)
    assert run(Photos(data=source, queries=source / "inspect", scale_to_mm=12.5, workspace=work)) == 0
    out = capsys.readouterr().out
    assert "cube: 10 views of 320 x 240" in out
    assert "10 of 10 registered; no photo from below" in out
    assert "1 unit = 12.5 mm, from --scale-to-mm" in out
