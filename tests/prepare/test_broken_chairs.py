"""BrokenChairs' folders: ours come back as packed, released ones are put right, bad ones named, pickles run nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare.datasets.broken_chairs import prepare_broken_chairs, triangulated
from prepare.datasets.view_records import read_record
from prepare.errors import InputError, UsageError
from prepare.generate.chairs import ChairSettings, camera_at, generate_chairs
from prepare.shape_pairs import ShapePairs

TINY = ChairSettings(
    seed=4, shapes=4, photos_per_shape=2, views=5, px=64, points=48, supersample=1, aided=False
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return generate_chairs(tmp_path_factory.mktemp("raw"), "ours", TINY, 1)


@pytest.fixture
def copied(ours, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(ours.folder, folder, ignore=shutil.ignore_patterns("packed"))
    return folder


def read(folder, tmp_path, **settings):
    return prepare_broken_chairs(folder, lambda name: tmp_path / "ws" / name, px=64, **settings)


def test_our_own_folders_give_the_packed_arrays_again(ours, tmp_path):
    found = read(ours.folder, tmp_path, name="again")
    assert found.skipped == ()
    assert found.pairs.splits == ours.pairs.splits
    order = match(found.pairs, ours.pairs)
    for name in found.pairs.sizes.arrays():
        theirs, mine = getattr(found.pairs, name), getattr(ours.pairs, name)
        if name.startswith("quer"):
            mine = mine[order]
        if name == "query_twin":
            mine = np.where(mine >= 0, np.argsort(order)[mine], -1)
        if mine.dtype.kind == "f":
            np.testing.assert_allclose(theirs, mine, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(theirs, mine, err_msg=name)
    again = read(ours.folder, tmp_path, name="again")
    assert again.notes == ("was packed already",)


def match(found: ShapePairs, ours: ShapePairs) -> list[int]:
    """For each photo that was read, the same one of ours."""
    return [int(np.flatnonzero((ours.queries == photo).all(axis=(1, 2, 3)))[0]) for photo in found.queries]


def as_released(folder: Path) -> None:
    """Make our folders what was released: pickles, xyz by rounded cells, a view twice, 512-px boxes, no exact masks."""
    for path in sorted(folder.glob("shapes/*/mv_images/*.npz")):
        with np.load(path) as found:
            fields = dict(found)
        camera = json.loads(path.with_suffix("").with_name(path.name[:-4] + ".json").read_text())
        pose = np.diag([1, -1, -1, 1]) @ np.array(camera["RT"])
        xyz = np.full((8, 8, 3), -1.0)
        rng = np.random.default_rng(0)
        points = fields["xyz"][np.isfinite(fields["xyz"][..., 0])].astype(float)
        for point in points + rng.normal(0, 0.01, points.shape):
            seen = (pose[:3, :3] @ point + pose[:3, 3]) @ np.array(camera["K"]).T
            column, row = np.round(seen[:2] / seen[2] / 8).astype(int)
            if 0 <= row < 8 and 0 <= column < 8:
                xyz[row, column] = point
        record = {"pxy": fields["pxy"].astype(np.int64), "is_visible": fields["is_visible"], "xyz": xyz}
        np.save(path.with_suffix(".npy"), np.array(record, dtype=object), allow_pickle=True)
        path.unlink()
    for path in folder.glob("annotations/*/*"):
        if path.name.startswith(("change_", "seg_")) or "normal" in path.name:
            path.unlink()
        elif path.suffix == ".json":
            info = json.loads(path.read_text())
            names = {"rotation": "rotate", "broken": "damaged"}
            info["config"]["type"] = names.get(info["config"]["type"], info["config"]["type"])
            del info["camera"], info["part"]
            path.write_text(json.dumps(info))
    for shape in folder.glob("shapes/*/mv_images"):
        first = sorted(shape.glob("*.png"))[0].name[:-4]
        fields = first.split("_")
        for suffix in (".png", ".json", ".npy"):
            for azimuth in ("0.0", "360.0"):
                copy = shape / ("_".join([*fields[:2], azimuth, "20.0"]) + suffix)
                shutil.copy(shape / f"{first}{suffix}", copy)


def test_a_released_set_is_put_right(ours, copied, tmp_path):
    as_released(copied)
    found = read(copied, tmp_path)
    pairs = found.pairs
    assert found.skipped == ()
    assert pairs.sizes.views == TINY.views + 1  # 0 and 360 degrees are one
    assert sorted(pairs.query_type.tolist()) == sorted(ours.pairs.query_type.tolist())
    order = match(pairs, ours.pairs)
    np.testing.assert_allclose(pairs.query_box, ours.pairs.query_box[order], atol=1e-6)
    assert np.isnan(pairs.query_camera).all()
    assert pairs.parts[pairs.query_part[pairs.query_label == 1][0]] == "unknown"
    # The change is the part's masks: it holds all that differs.
    for row, mine in enumerate(order):
        if pairs.query_label[row]:
            assert pairs.change_mask(row)[ours.pairs.change_mask(mine)].mean() > 0.9
    for shape in range(TINY.shapes):
        for view in range(pairs.sizes.views):
            xyz = pairs.view_xyz[shape, view].astype(float)
            seen = np.isfinite(xyz[..., 0])
            assert seen.sum() >= 3
            pose, lens = pairs.view_camera[shape, view], pairs.view_K[shape, view]
            flat = (xyz[seen] @ pose[:3, :3].T + pose[:3, 3]) @ lens.T
            rows, columns = np.nonzero(seen)
            off = flat[:, :2] / flat[:, 2:] - 8 * (np.stack([columns, rows], axis=1) + 0.5)
            assert np.abs(off).max() <= 4.001  # each point within its own cell


def test_triangulated_points_are_the_points_and_lone_ones_are_left_out():
    rng = np.random.default_rng(1)
    truth = rng.uniform(-0.5, 0.5, (30, 3))
    cameras = [camera_at(256, 40.0 * k, 20.0, 3.0) for k in range(6)]
    pose = np.stack([camera.world_to_cam.numpy() for camera in cameras])
    lens = np.stack([camera.intrinsics.numpy() for camera in cameras])
    flat = (truth @ pose[:, :3, :3].swapaxes(1, 2) + pose[:, None, :3, 3]) @ lens.swapaxes(1, 2)
    at = flat[..., :2] / flat[..., 2:]
    visible = rng.random((6, 30)) < 0.6
    visible[:, 0] = [True, *[False] * 5]
    visible[:3, 1:] |= visible.sum(axis=0)[1:] < 2
    found = triangulated(np.round(at[..., ::-1]).astype(int), visible, pose, lens)
    assert np.isnan(found[0]).all()
    # Half a pixel is 0.004 world units at this distance.
    assert np.linalg.norm(found[1:] - truth[1:], axis=1).max() < 0.02
    assert np.median(np.linalg.norm(found[1:] - truth[1:], axis=1)) < 0.006


def test_damaged_and_half_listed_samples_are_named_and_left_out(ours, copied, tmp_path):
    photos = sorted((copied / "images").glob("*/*anomaly.png"))
    stems = [photo.stem.removeprefix("render_") for photo in photos]
    notes = [copied / "annotations" / photo.parent.name for photo in photos]
    photos[0].write_bytes(photos[0].read_bytes()[:300])
    (notes[1] / f"info_{stems[1]}.json").unlink()
    for mask in notes[2].glob(f"*_{stems[2]}.png"):
        mask.unlink()
    shapes = sorted((copied / "shapes").iterdir())
    next(shapes[3].glob("mv_images/*.json")).unlink()
    found = read(copied, tmp_path)
    text = "\n".join(found.skipped)
    assert photos[0].name in text
    assert f"{photos[1].name}: its annotation is not there" in text
    assert f"{photos[2].name}: neither of its masks" in text
    assert "100003: 4 whole views of the 5 wanted" in text
    assert len(found.skipped) == 4
    assert found.pairs.shapes == ("100000", "100001", "100002")
    assert found.pairs.sizes.queries == 3  # the twins
    assert (found.pairs.query_label == 0).all()


def test_a_stopped_run_goes_on_and_the_dataset_is_never_written_to(ours, tmp_path, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in ours.folder.rglob("*")}

    class Stop(Exception):
        pass

    def stop(name, done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        read(ours.folder, tmp_path, name="x", progress=stop)
    opened = []
    from prepare.datasets import broken_chairs

    original = broken_chairs._packed_views
    monkeypatch.setattr(
        broken_chairs, "_packed_views", lambda item, *rest: opened.append(item.shape) or original(item, *rest)
    )
    found = read(ours.folder, tmp_path, name="x")
    assert opened == ["100002", "100003"]
    assert len(found.pairs.shapes) == 4
    assert {p: p.stat().st_mtime_ns for p in ours.folder.rglob("*")} == before
    with pytest.raises(UsageError, match="into the dataset itself"):
        prepare_broken_chairs(ours.folder, lambda name: ours.folder / name, px=64)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "split.json").unlink(), "split.json: is not there"),
        (lambda f: (f / "split.json").write_text("{}"), "train, val and test are wanted"),
        (
            lambda f: (f / "split.json").write_text(json.dumps({"train": ["1"], "val": ["1"], "test": []})),
            "shape 1 is in train and in val",
        ),
        (lambda f: shutil.rmtree(f / "images"), "unpack images.zip"),
        (lambda f: shutil.rmtree(f / "shapes"), "unpack shapes.zip"),
    ],
)  # fmt: skip
def test_what_is_no_such_dataset_is_told_in_one_line(copied, tmp_path, damage, words):
    damage(copied)
    with pytest.raises(InputError, match=words):
        read(copied, tmp_path)


# --- pickles -------------------------------------------------------------------------------------------------------------

FIELDS = {
    "pxy": np.arange(8).reshape(4, 2),
    "is_visible": np.array([True, False, True, True]),
    "xyz": np.where(np.arange(12).reshape(2, 2, 3) < 3, -1.0, 0.25),
}


class Attack:
    """What a pickle may ask for."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["beside", "instead", "within"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, protocol, place):
    touched = tmp_path / "touched"
    for attack in (Attack(os.system, f"touch {touched}"), Attack(eval, f"open({str(touched)!r}, 'w')")):
        content = {
            "beside": FIELDS | {"mesh": attack},
            "instead": attack,
            "within": FIELDS | {"xyz": np.array([attack], dtype=object)},
        }[place]
        path = tmp_path / "view.npy"
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            holder = np.empty((), dtype=object)
            holder[()] = content
            pickle.dump(holder, file, protocol=protocol)
        with pytest.raises(InputError, match="is not opened"):
            read_record(path)
        assert not touched.exists()


def test_a_record_with_a_foreign_class_is_read_without_it(tmp_path):
    module = types.ModuleType("foreign_mesh")
    exec(
        "import numpy as np\n"
        "class TrackedArray(np.ndarray):\n    pass\n"
        "class Mesh:\n    def __init__(self): self.name = 'chair'; self.cache = {'a': [1]}\n",
        module.__dict__,
    )
    sys.modules["foreign_mesh"] = module
    try:
        tracked = FIELDS["xyz"].view(module.TrackedArray)
        record = FIELDS | {"xyz": tracked, "mesh": module.Mesh(), "count": np.float64(3.0)}
        np.save(tmp_path / "view.npy", np.array(record, dtype=object), allow_pickle=True)
    finally:
        del sys.modules["foreign_mesh"]
    with pytest.raises(ModuleNotFoundError):
        np.load(tmp_path / "view.npy", allow_pickle=True)
    found = read_record(tmp_path / "view.npy")
    assert type(found.xyz) is np.ndarray
    np.testing.assert_array_equal(found.pxy, FIELDS["pxy"])
    np.testing.assert_array_equal(found.is_visible, FIELDS["is_visible"])
    assert np.isnan(found.xyz[0, 0]).all()
    np.testing.assert_array_equal(found.xyz[1], FIELDS["xyz"][1])
    assert "foreign_mesh" not in sys.modules


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"no array at all", "cannot be read"),
    ],
)
def test_a_damaged_record_is_told(tmp_path, content, words):
    (tmp_path / "view.npy").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_record(tmp_path / "view.npy")


def test_a_record_that_lacks_something_is_told(tmp_path):
    for change, words in (
        ({"xyz": None}, "xyz must be an array of numbers"),
        ({"pxy": np.zeros((3, 2))}, "is_visible"),
        ({"pxy": np.array(["a", "b"])}, "pxy must be an array of numbers"),
    ):
        np.save(tmp_path / "v.npy", np.array(FIELDS | change, dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match=words):
            read_record(tmp_path / "v.npy")


def test_masks_and_photos_of_other_sizes_are_brought_to_the_packed_one(ours, copied, tmp_path):
    for path in copied.glob("images/*/*.png"):
        image = Image.open(path)
        image.resize((128, 128), Image.Resampling.NEAREST).save(path)
    found = read(copied, tmp_path)
    assert found.skipped == ()
    order = match(found.pairs, ours.pairs)
    # The camera's lens is of the picture that was stored: 128 px now.
    np.testing.assert_allclose(found.pairs.query_K[:, 0, 0], 0.5 * ours.pairs.query_K[order][:, 0, 0])
