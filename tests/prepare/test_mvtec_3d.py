from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare.datasets.mvtec_3d import prepare_mvtec_3d
from prepare.errors import InputError, UsageError
from prepare.foreground_cloud import CloudSettings, keep_part
from prepare.organised_cloud import measured, read_xyz, write_xyz
from prepare.registered import RegisteredClass, pad_zero

HEIGHT, WIDTH = 80, 100


def _cloud(seed: int) -> np.ndarray:
    """A block 2 cm high on a plate half a metre below the sensor, which misses a square on it."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    z = np.full((HEIGHT, WIDTH), 0.5) + rng.normal(0, 2e-4, (HEIGHT, WIDTH))
    z[20:60, 30 + seed : 70 + seed] -= 0.02
    xyz = np.stack([(u + 0.5 - WIDTH / 2) / 500 * z, (v + 0.5 - HEIGHT / 2) / 500 * z, z], -1)
    xyz[30:34, 40:44] = 0
    return xyz.astype(np.float32)


def _write(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for at, stems in (
        ("train/good", ("000", "001", "002")), ("validation/good", ("000",)), ("test/good", ("000",)),
        ("test/hole", ("000", "001")), ("test/contamination", ("000",)),
    ):  # fmt: skip
        for number, stem in enumerate(stems):
            for what in ("rgb", "xyz", "gt"):
                (folder / at / what).mkdir(parents=True, exist_ok=True)
            photo = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            Image.fromarray(photo).save(folder / at / "rgb" / f"{stem}.png")
            write_xyz(folder / at / "xyz" / f"{stem}.tiff", _cloud(number))
            truth = np.zeros((HEIGHT, WIDTH), np.uint8)
            truth[40:50, 40:60] = 255 * ("good" not in at)
            if "train" not in at and "validation" not in at:
                Image.fromarray(truth).save(folder / at / "gt" / f"{stem}.png")
    return folder


def _snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def bagel(tmp_path: Path) -> Path:
    return _write(tmp_path / "data" / "bagel")


def test_photos_are_linked_points_cleaned_and_the_dataset_is_as_it_was(bagel: Path, tmp_path: Path) -> None:
    before = _snapshot(bagel)
    (made,) = prepare_mvtec_3d(bagel.parent, lambda name: tmp_path / "work" / name, workers=1)
    assert _snapshot(bagel) == before
    assert made.folder == tmp_path / "work" / "bagel"
    found = RegisteredClass.open(made.folder)
    assert [s.name for s in found.samples()] == [
        "train/good/000", "train/good/001", "train/good/002", "validation/good/000", "test/good/000",
        "test/contamination/000", "test/hole/000", "test/hole/001",
    ]  # fmt: skip
    assert found.defects == ("contamination", "hole")
    assert (found.name, found.source, found.variant, found.refused) == ("bagel", "mvtec-3d", "rgb", ())
    assert found.settings["cloud"]["plane_iterations"] == 1000
    hole = found.samples("test")[-1]
    assert hole.rgb.resolve() == bagel / "test/hole/rgb/001.png"
    assert hole.gt is not None
    assert hole.gt.resolve() == bagel / "test/hole/gt/001.png"
    expected = keep_part(read_xyz(bagel / "test/hole/xyz/001.tiff"), CloudSettings())
    assert np.array_equal(read_xyz(hole.xyz), pad_zero(expected, 100))
    kept = measured(read_xyz(hole.xyz))
    block = np.zeros((100, 100), bool)
    block[30:70, 31:71] = True
    block[40:44, 40:44] = False
    assert np.array_equal(kept, block)
    loaded = found.load(hole, 100)
    assert np.array_equal(loaded.valid.numpy(), block)
    assert loaded.mask is not None
    assert np.argwhere(loaded.mask.numpy()).min(axis=0).tolist() == [50, 40]


def test_the_other_variant_is_black_where_points_were_removed_and_padded(bagel: Path, tmp_path: Path) -> None:
    (made,) = prepare_mvtec_3d(bagel, lambda name: tmp_path / name, variant="rgb-blacked", workers=1)
    assert made.folder.name == "bagel-rgb-blacked"
    assert made.registered.variant == "rgb-blacked"
    hole = made.registered.samples("test")[-1]
    photo = np.asarray(Image.open(hole.rgb))
    raw = np.asarray(Image.open(bagel / "test/hole/rgb/001.png"))
    assert photo.shape == (100, 100, 3)
    assert (photo[:10] == 0).all()
    assert (photo[10:90][~_cloud(1).any(axis=-1)] == raw[~_cloud(1).any(axis=-1)]).all()  # not measured
    assert (photo[30:70, 31:71] == raw[20:60, 31:71]).all()
    assert (photo[10:30] == 0).all()
    assert hole.gt is not None
    truth = np.asarray(Image.open(hole.gt))
    assert truth.shape == (100, 100)
    assert truth[50:60, 40:60].all()
    assert (truth > 0).sum() == 200


def _break(bagel: Path) -> dict[str, str]:
    """Spoils samples; what must be said of each."""
    xyz = bagel / "test/hole/xyz/000.tiff"
    xyz.write_bytes(xyz.read_bytes()[:3000])
    (bagel / "test/contamination/gt/000.png").unlink()
    nan = _cloud(0)
    nan[0, 0] = np.nan
    write_xyz(bagel / "train/good/xyz/000.tiff", nan)
    write_xyz(bagel / "train/good/xyz/002.tiff", _cloud(0)[:70])
    flat = _cloud(0)
    flat[20:60, 30:70] += [0, 0, 0.02]
    write_xyz(bagel / "test/good/xyz/000.tiff", flat)
    few = _cloud(0)
    few[36:] = 0
    few[:, 52:60] = 0
    few[:20, 10:90], few[20:36, 10:46] = 0, 0
    write_xyz(bagel / "validation/good/xyz/000.tiff", few)
    photo = bagel / "test/hole/rgb/001.png"
    photo.write_bytes(photo.read_bytes()[:2000])
    for name in ("500", "501"):
        shutil.copy(bagel / "train/good/rgb/001.png", bagel / f"train/good/rgb/{name}.png")
    shutil.copy(bagel / "train/good/xyz/001.tiff", bagel / "train/good/xyz/502.tiff")
    Image.fromarray(np.zeros((80, 90), np.uint8)).save(bagel / "test/hole/gt/002.png")
    shutil.copy(bagel / "train/good/rgb/001.png", bagel / "test/hole/rgb/002.png")
    shutil.copy(bagel / "train/good/xyz/001.tiff", bagel / "test/hole/xyz/002.tiff")
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(bagel / "train/good/xyz/501.tiff")
    return {
        "test/hole/000": "damaged or truncated",
        "test/contamination/000": "no ground truth",
        "train/good/000": "1 pixels hold NaN",
        "train/good/002": "100 x 70 points do not lie on a photo of 100 x 80 px",
        "test/good/000": "the cloud is empty",
        "validation/good/000": "at least 1024 points are wanted",
        "test/hole/001": "damaged or truncated",
        "train/good/500": "no points for this photo",
        "train/good/501": "got uint8 channels",
        "train/good/502": "no photo for these points",
        "test/hole/002": "100 x 80 px as the photo are wanted, got 90 x 80",
    }


def test_bad_samples_get_a_line_each_and_the_others_go_on(bagel: Path, tmp_path: Path) -> None:
    wanted = _break(bagel)
    (made,) = prepare_mvtec_3d(bagel, lambda name: tmp_path / "work" / name, workers=1)
    refused = dict(made.registered.refused)
    assert set(refused) == set(wanted)
    for name, words in wanted.items():
        assert words in refused[name], name
        assert "\n" not in refused[name]
    assert [s.name for s in made.registered.samples()] == ["train/good/001"]
    told = json.loads((made.folder / "class.json").read_text())
    assert len(told["refused"]) == len(wanted)
    shutil.rmtree(bagel / "train/good/xyz")
    (bagel / "train/good/xyz").mkdir()
    with pytest.raises(InputError, match="no usable train sample"):
        prepare_mvtec_3d(bagel, lambda name: tmp_path / "other" / name, workers=1)


def test_a_stopped_run_goes_on_and_only_what_changed_is_done_again(bagel: Path, tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        return tmp_path / "work" / name

    def stop(name: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_mvtec_3d(bagel, folder, workers=1, progress=stop)
    assert not (folder("bagel") / "class.json").exists()
    (made,) = prepare_mvtec_3d(bagel, folder, workers=1)
    assert made.kept == 3
    whole = _snapshot(made.folder)
    (again,) = prepare_mvtec_3d(bagel, folder, workers=1)
    assert again.kept == 8
    assert {p: data for p, (_, data) in _snapshot(made.folder).items()} == {
        p: d for p, (_, d) in whole.items()
    }
    write_xyz(bagel / "train/good/xyz/001.tiff", _cloud(5))
    (again,) = prepare_mvtec_3d(bagel, folder, workers=1)
    assert again.kept == 7
    assert measured(read_xyz(made.folder / "train/good/xyz/001.tiff"))[:, 74].any()


@pytest.mark.slow
def test_two_processes_write_what_one_does(bagel: Path, tmp_path: Path) -> None:
    (made,) = prepare_mvtec_3d(bagel, lambda name: tmp_path / "work" / name, workers=1)
    (fresh,) = prepare_mvtec_3d(bagel, lambda name: tmp_path / "fresh" / name, workers=2)
    for path in sorted(made.folder.rglob("*.tiff")):
        assert path.read_bytes() == (fresh.folder / path.relative_to(made.folder)).read_bytes()


def test_nothing_is_written_into_the_dataset_or_over_other_files(bagel: Path, tmp_path: Path) -> None:
    for folder in (bagel, bagel / "prepared", bagel.parent):
        with pytest.raises(UsageError, match="into the dataset itself"):
            prepare_mvtec_3d(bagel, lambda name, folder=folder: folder, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="did not write"):
        prepare_mvtec_3d(bagel, lambda name: tmp_path / "mine", workers=1)
    prepare_mvtec_3d(bagel, lambda name: tmp_path / "one", workers=1)
    with pytest.raises(UsageError, match="was prepared otherwise"):
        prepare_mvtec_3d(bagel, lambda name: tmp_path / "one", workers=1, cloud=CloudSettings(seed=4))
    with pytest.raises(UsageError, match="has no class 'bagle'; did you mean bagel"):
        prepare_mvtec_3d(bagel.parent, lambda name: tmp_path / name, classes=["bagle"])
    with pytest.raises(InputError, match="has no class in it"):
        prepare_mvtec_3d(bagel / "train", lambda name: tmp_path / name)
