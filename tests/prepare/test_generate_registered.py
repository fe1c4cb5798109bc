from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare.datasets.eyecandies import prepare_eyecandies
from prepare.datasets.mvtec_3d import prepare_mvtec_3d
from prepare.errors import UsageError
from prepare.generate.registered_objects import DISTANCE, FIELD, RegisteredSettings, generate_registered
from prepare.generate.relief_defects import FAULTS, SIMPLE, add_fault
from prepare.generate.relief_view import Light, lit_share, look_down, measure, photo, see, seen_mask
from prepare.generate.reliefs import HALF, PARTS, Relief, make_relief
from prepare.organised_cloud import measured, read_xyz

TINY = RegisteredSettings(
    classes=("bagel",), train=2, validation=1, good=1, defects=1, kinds=("dent", "colour"), px=100
)


def _plain(height: np.ndarray) -> Relief:
    n = len(height)
    return Relief(height, np.full((n, n, 3), 0.3), np.zeros((n, n)), (0.5, 0.5, 0.5))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_ray_meets_the_support_and_a_cap_where_geometry_says() -> None:
    n = 300
    at = (np.arange(n) + 0.5) * 2 * HALF / n - HALF
    x, y = at[None, :], -at[:, None]
    cap = np.sqrt(np.clip(0.04**2 - (x - 0.01) ** 2 - y**2, 0, None))
    lens = look_down(0.5, 300.0, 90, tilt_deg=8.0, turn_deg=5.0)
    seen = see(_plain(cap), lens)
    local = np.einsum("ij,hwj->hwi", lens.rotation, seen.points - lens.centre)
    v, u = np.mgrid[:90, :90] + 0.5
    assert np.allclose(local[..., 0] / local[..., 2] * 300 + 45, u)  # the point lies on its pixel's ray
    assert np.allclose(local[..., 1] / local[..., 2] * 300 + 45, v)
    assert np.allclose(local[..., 2], seen.depth)
    centre = np.array([0.01, 0, 0])
    ray = local / np.linalg.norm(local, axis=-1, keepdims=True) @ lens.rotation
    b = ray @ (centre - lens.centre)
    inside = b**2 - ((centre - lens.centre) ** 2).sum() + 0.04**2
    on_cap = inside > 0.00005  # not at the silhouette
    expected = lens.centre + (b - np.sqrt(np.clip(inside, 0, None)))[..., None] * ray
    on_cap &= expected[..., 2] > 0.008
    assert on_cap.sum() > 800
    assert np.abs(seen.points - expected)[on_cap].max() < 1.5e-4  # a bilinear cap of cells of 0.6 mm
    assert (np.einsum("ijk,ijk->ij", seen.normals, (expected - centre) / 0.04)[on_cap] > 0.998).all()
    clear = inside < -0.0002
    assert np.abs(seen.points[clear][:, 2]).max() < 1e-4  # a cell at the rim of the cap


def test_a_wall_throws_a_shadow_as_long_as_the_light_is_low() -> None:
    n = 200
    height = np.zeros((n, n))
    height[:, 100:140] = 0.02
    towards = np.array([1.0, 0.0, 1.0]) / math.sqrt(2)
    share = lit_share(_plain(height), towards)
    row = share[100]
    cell = 2 * HALF / n
    dark = np.flatnonzero(row < 0.5)
    assert abs(dark.min() - (100 - 0.02 / cell)) <= 3  # away from the light, as long as it is high
    assert dark.max() < 101
    assert (row[102:] == 1).all()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_varies_and_is_of_its_size(part: str) -> None:
    first, second = (make_relief(part, 120, np.random.default_rng(s)) for s in (1, 2))
    assert np.array_equal(first.height, make_relief(part, 120, np.random.default_rng(1)).height)
    assert np.abs(first.height - second.height).mean() > 1e-4
    for relief in (first, second):
        rows, columns = np.nonzero(relief.height > 0.002)
        longest = max(np.ptp(rows), np.ptp(columns)) * relief.cell
        assert 0.06 < longest < 0.125
        assert 0.012 < relief.height.max() < 0.055
        assert (relief.albedo > 0).all()
        assert (relief.albedo < 1).all()
        border = np.ones((120, 120), bool)
        border[6:-6, 6:-6] = False
        assert (relief.height[border] == 0).all()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_what_it_should_and_only_in_its_mask(fault: str) -> None:
    areas = []
    for seed in range(6):
        part = PARTS[seed % 5]
        good = make_relief(part, 200, np.random.default_rng([7, seed]))
        before = good.height.copy(), good.albedo.copy()
        faulty = add_fault(good, fault, np.random.default_rng([8, seed]))
        assert np.array_equal(good.height, before[0])
        assert np.array_equal(good.albedo, before[1])
        mask = np.logical_or.reduce(list(faulty.masks.values()))
        step = faulty.relief.height.astype(np.float64) - good.height
        tint = np.abs(faulty.relief.albedo - good.albedo).max(axis=-1)
        assert set(faulty.masks) <= set(SIMPLE)
        assert len(faulty.masks) == (2 if fault == "combined" else 1)
        assert mask.any()
        areas.append(mask.sum() * good.cell**2)
        if fault in ("dent", "hole"):
            assert step[mask].min() < -0.0005
        if fault == "contamination":
            assert step[mask].max() > 0.0005
        if fault == "colour":
            assert (step == 0).all()
        if fault in ("contamination", "colour"):
            assert tint[mask].mean() > 0.05
            assert (tint[~mask] < 0.5).all()
        if fault == "dent":
            assert (tint == 0).all()
        if fault != "colour":
            assert np.abs(step[~mask]).max() < 0.0013  # a dent's raised rim, a hole's bevel
    assert max(areas) > 2 * min(areas)


def test_a_colour_changes_no_point_and_a_dent_only_its_own() -> None:
    good = make_relief("potato", 200, np.random.default_rng(3))
    lens = look_down(DISTANCE, 200 * DISTANCE / FIELD, 200, tilt_deg=7.0)
    seen = see(good, lens)
    before = measure(good, lens, seen, 5e-5, np.random.default_rng(1))
    lights = (Light((0.5, 0.4, 0.8), 0.75, 0.55),)
    for fault in ("colour", "dent"):
        faulty = add_fault(good, fault, np.random.default_rng(4))
        again = see(faulty.relief, lens)
        after = measure(faulty.relief, lens, again, 5e-5, np.random.default_rng(1))
        mask = seen_mask(faulty.masks[fault], again)
        both = measured(before) & measured(after)
        moved = np.linalg.norm(after - before, axis=-1) * both
        tint = np.abs(photo(good, lens, seen, lights) - photo(faulty.relief, lens, again, lights)).max(-1)
        assert mask.sum() > 20
        if fault == "colour":
            assert np.array_equal(before, after)
            assert tint[mask].mean() > 0.1
        else:
            assert moved[mask].max() > 0.001
            assert (tint[mask] > 0.01).any()
        assert np.median(tint[~mask]) < 0.002
    away = np.linalg.norm(before[measured(before)], axis=-1)
    exact = np.linalg.norm(seen.points - lens.centre, axis=-1)[measured(before)]
    assert 3e-5 < (away - exact).std() < 7e-5
    missing = ~measured(before)
    assert 0.001 < missing.mean() < 0.1
    steep = seen.normals[..., 2] < 0.5
    assert missing[steep].mean() > 5 * missing[~steep].mean()


def test_a_set_is_the_same_again_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        steps.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_registered(tmp_path, "a", TINY, 1, stop)
    assert steps == [(0, 6), (1, 6), (2, 6)]
    made = generate_registered(tmp_path, "a", TINY, 1)
    assert (made.made, made.kept) == (4, 2)
    fresh = generate_registered(tmp_path / "other", "a", TINY, 1)
    assert _files(made.folder) == _files(fresh.folder)
    more = RegisteredSettings(**{**TINY.__dict__, "train": 3, "kinds": ("colour",)})
    other = generate_registered(tmp_path, "b", more, 1)
    theirs = _files(other.folder)
    assert theirs["bagel/test/colour/xyz/000.tiff"] == _files(made.folder)["bagel/test/colour/xyz/000.tiff"]
    assert theirs["bagel/train/good/rgb/002.png"] != theirs["bagel/train/good/rgb/001.png"]
    with pytest.raises(UsageError, match="was made with other settings"):
        generate_registered(tmp_path, "a", more, 1)


@pytest.mark.slow
def test_two_processes_make_what_one_does(tmp_path: Path) -> None:
    one = generate_registered(tmp_path / "1", "a", TINY, 1)
    two = generate_registered(tmp_path / "2", "a", TINY, 2)
    assert _files(one.folder) == _files(two.folder)


def test_a_made_set_prepared_as_mvtec_has_its_support_removed_and_only_that(tmp_path: Path) -> None:
    settings = RegisteredSettings(**{**TINY.__dict__, "train": 1, "validation": 0, "px": 200})
    made = generate_registered(tmp_path, "raw", settings, 1)
    (prepared,) = prepare_mvtec_3d(made.folder, lambda name: tmp_path / "work" / name, workers=1)
    found = prepared.registered
    assert found.refused == ()
    assert found.licence == "made by splatad generate registered"
    assert [s.name for s in found.samples("test")] == ["test/good/000", "test/colour/000", "test/dent/000"]
    relief = make_relief("bagel", 200, np.random.default_rng([0, 0, 0, 0, 0, 0]))
    lens = look_down(DISTANCE, 200 * DISTANCE / FIELD, 200, tilt_deg=7.0)
    height = see(relief, lens).points[..., 2]
    sample = found.samples("train")[0]
    raw, kept = (
        measured(read_xyz(made.folder / "bagel/train/good/xyz/000.tiff")),
        measured(read_xyz(sample.xyz)),
    )
    assert raw.mean() > 0.9
    assert kept[raw & (height > 0.0056)].all()
    assert not kept[height < 0.0044].any()
    assert kept.sum() > 8000
    dent = found.load(found.samples("test")[-1], 200)
    assert dent.mask is not None
    assert bool(dent.mask.any())


def test_a_made_set_prepared_as_eyecandies_has_its_exact_points(tmp_path: Path) -> None:
    settings = RegisteredSettings(**{**TINY.__dict__, "layout": "eyecandies", "train": 1, "validation": 0})
    made = generate_registered(tmp_path, "raw", settings, 1)
    data = made.folder / "bagel" / "test_public" / "data"
    assert sorted(p.name for p in data.iterdir() if p.name.startswith("01_")) == sorted(
        f"01_{end}" for end in (
            *(f"image_{k}.png" for k in range(6)), "depth.png", "info_depth.yaml", "normals.png", "pose.txt", "mask.png",
            "bumps_mask.png", "dents_mask.png", "colors_mask.png", "normals_mask.png",
        )
    )  # fmt: skip
    (prepared,) = prepare_eyecandies(made.folder, lambda name: tmp_path / "work" / name, workers=1)
    found = prepared.registered
    assert [s.name for s in found.samples("test")] == ["test/good/00", "test/bad/01", "test/bad/02"]
    relief = make_relief("bagel", 100, np.random.default_rng([0, 0, 0, 0, 0, 0]))
    rng = np.random.default_rng([0, 0, 0, 0, 0, 1])
    tilt, turn = 8 + rng.normal(0, 1.0), rng.normal(0, 0.3)
    focal = 711.11 / 512
    lens = look_down(focal * FIELD, focal * 100, 100, tilt_deg=tilt, turn_deg=turn, corner=0.0)
    truth = see(relief, lens).points
    xyz = read_xyz(found.samples("train")[0].xyz)
    kept = measured(xyz)
    assert kept.sum() > 1500
    assert (truth[kept][:, 2] > 0.0015).all()
    assert kept[truth[..., 2] > 0.0025].all()
    # Theirs: x right, y towards the viewer, z down into the support.
    assert np.abs(xyz[kept] - truth[kept] * [1, -1, -1]).max() < 1e-5
    dents = np.asarray(Image.open(data / "01_dents_mask.png"))
    colours = np.asarray(Image.open(data / "02_colors_mask.png"))
    assert dents.any()
    assert colours.any()
    assert not np.asarray(Image.open(data / "01_colors_mask.png")).any()
    assert np.array_equal(dents, np.asarray(Image.open(data / "01_mask.png")))


def test_wrong_settings_and_foreign_folders_are_told(tmp_path: Path) -> None:
    for change, words in (
        ({"px": 150}, "multiple of 100"), ({"train": 0}, "--train"),
        ({"kinds": ()}, "at least one"), ({"layout": "eyecandies", "defects": 60}, "two digits"),
        ({"classes": ("bagel", "bagel")}, "each name once"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            generate_registered(tmp_path, "x", RegisteredSettings(**{**TINY.__dict__, **change}), 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        generate_registered(tmp_path, "mine", TINY, 1)
