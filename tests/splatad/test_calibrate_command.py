"""`splatad fit` with folds and `splatad calibrate`: every photo scored by splats that have not seen it; rates chosen later."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from detect.calibrate import load_calibration
from detect.comparer import new_comparer, save_comparers
from detect.train_comparer import TrainConfig
from splatad import cli
from splatad.reference_dir import CALIBRATION, COMPARER, EXPECTED

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SMALL = ("--steps", "150", "--splats", "1500", "--size-px", "100")


def write_photo(path, photo):
    """With its silhouette as alpha: nothing to guess about the background."""
    rgba = torch.cat([photo.rgb, photo.alpha[..., None]], dim=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((rgba * 255).round().byte().numpy()).save(path)


@pytest.fixture(scope="module")
def scene(toy, tmp_path_factory):
    """Twelve of the toy's photos in nerfstudio's layout."""
    folder = tmp_path_factory.mktemp("scenes") / "box"
    frames = []
    lens = toy.photos[0].camera
    for i, photo in enumerate(toy.photos[:36:3]):
        write_photo(folder / f"images/{i:02d}.png", photo)
        cam_to_world = np.linalg.inv(photo.camera.world_to_cam.double().numpy()) @ np.diag([1, -1, -1, 1])
        frames.append({"file_path": f"images/{i:02d}.png", "transform_matrix": cam_to_world.tolist()})
    numbers = {"fl_x": lens.fl_x, "fl_y": lens.fl_y, "cx": lens.cx, "cy": lens.cy, "w": 100, "h": 100}
    document = numbers | {"camera_model": "OPENCV", "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def little_training():
    """Networks that have learned next to nothing, in a second."""
    return TrainConfig(steps=2, batch=1, synthetic=1)


@pytest.fixture(scope="module")
def fitted(scene, tmp_path_factory):
    """The workspace after `splatad fit` in three folds."""
    work = tmp_path_factory.mktemp("work")
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("splatad.reference_dir.TrainConfig", little_training)
        status = cli.main(["fit", "--scene", str(scene), "--workspace", str(work), "--folds", "3", *SMALL])
    torch.set_num_threads(before)
    assert status == 0
    return work


@pytest.fixture
def work(fitted, tmp_path):
    """A copy to change."""
    shutil.copytree(fitted, tmp_path / "work")
    return tmp_path / "work"


def calibration_of(work):
    return load_calibration(work / "references/box" / CALIBRATION)


def test_a_fit_in_folds_scores_every_photo_and_fits_all_of_them(fitted):
    calibration = calibration_of(fitted)
    assert calibration.source == "cross-fitted"
    count = len(calibration.good_scores)
    assert (
        count >= 8
    )  # splats this rough do not find every camera again, and the note says how many they lost
    assert calibration.attainable_rate == pytest.approx(1 / (count + 1))
    assert count == 12 or f"{12 - count} more were not found again" in calibration.note
    document = json.loads((fitted / "references/box/reference.json").read_text())
    assert not any(view["held_out"] for view in document["views"])
    assert document["settings"]["folds"] == 3
    assert not (fitted / "references/box/checkpoint").exists()


def test_a_higher_rate_gives_a_lower_threshold_from_the_same_scores(work, capsys):
    before = calibration_of(work)
    assert cli.main(["calibrate", "--workspace", str(work), "--false-alarm-rate", "0.5"]) == 0
    after = calibration_of(work)
    assert after.good_scores == before.good_scores
    count = len(before.good_scores)
    assert after.threshold == sorted(before.good_scores)[math.ceil((count + 1) * 0.5) - 1]
    assert after.threshold < before.threshold
    printed = capsys.readouterr().out
    assert f"{count} good photos (cross-fitted)" in printed
    assert "needs 99 good photos" in printed  # for 1 %


def test_an_impossible_rate_is_refused_and_nothing_changes(work, capsys):
    before = (work / "references/box" / CALIBRATION).read_bytes()
    assert cli.main(["calibrate", "--workspace", str(work), "--false-alarm-rate", "0.01"]) == 2
    said = capsys.readouterr().err
    count = len(calibration_of(work).good_scores)
    assert f"{count} good photos support rates from {1 / (count + 1):.2%} up" in said
    assert "needs 99" in said
    assert (work / "references/box" / CALIBRATION).read_bytes() == before


def test_a_dry_run_shows_and_changes_nothing(work, capsys):
    before = (work / "references/box" / CALIBRATION).read_bytes()
    assert cli.main(["calibrate", "--workspace", str(work), "--false-alarm-rate", "0.3", "--dry-run"]) == 0
    assert "30.0%" in capsys.readouterr().out
    assert (work / "references/box" / CALIBRATION).read_bytes() == before


def test_folds_can_be_made_later_and_give_what_the_fit_gave(work, monkeypatch):
    monkeypatch.setattr("splatad.reference_dir.TrainConfig", little_training)
    before = calibration_of(work)
    networks = work / "references/box" / COMPARER
    learned = networks.read_bytes()
    save_comparers(networks, [new_comparer(9)])
    expected = (work / "references/box" / EXPECTED).read_bytes()
    path = work / "references/box" / CALIBRATION
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"good_scores": [1.0] * 12}))
    assert cli.main(["calibrate", "--workspace", str(work), "--folds", "3"]) == 0
    assert calibration_of(work) == before
    assert (work / "references/box" / EXPECTED).read_bytes() == expected
    assert networks.read_bytes() == learned
    assert not (work / "references/box/cross-fit").exists()


def test_folds_of_a_part_whose_surroundings_were_not_kept_are_refused(work, scene, tmp_path, capsys):
    # The same photos on clutter and without alpha, as `fit --no-keep-background` met them.
    cluttered = tmp_path / "cluttered"
    shutil.copytree(scene, cluttered)
    rng = np.random.default_rng(0)
    for path in sorted((cluttered / "images").iterdir()):
        with Image.open(path) as photo:
            beneath = Image.fromarray(rng.integers(0, 256, (*photo.size[::-1], 3), dtype=np.uint8))
            beneath.paste(photo.convert("RGB"), mask=photo.getchannel("A"))
        beneath.save(path)
    reference = work / "references/box"
    before = (reference / CALIBRATION).read_bytes()
    document = json.loads((reference / "reference.json").read_text())
    settings = document["settings"] | {"keep_background": False}
    document |= {"settings": settings, "scene": str(cluttered)}
    (reference / "reference.json").write_text(json.dumps(document))
    assert cli.main(["calibrate", "--workspace", str(work), "--folds", "3"]) == 2
    said = capsys.readouterr().err
    assert "surroundings and those were not kept (--no-keep-background); fit it again" in said
    assert (reference / CALIBRATION).read_bytes() == before
    assert not (reference / "cross-fit").exists()


def test_the_rule_may_take_the_networks_place(work):
    flags = ["--workspace", str(work), "--folds", "3", "--map", "difference"]
    before = calibration_of(work)
    assert cli.main(["calibrate", *flags]) == 0
    after = calibration_of(work)
    assert (before.detector, after.detector) == ("comparer", "difference")
    assert after.good_scores != before.good_scores
    assert not (work / "references/box" / COMPARER).exists()


def test_good_photos_of_ones_own_replace_the_scores_and_unfit_ones_do_not_count(toy, tmp_path, capsys):
    folder = shutil.copytree(toy.folder, tmp_path / "toy")
    for i, camera in enumerate(toy.cameras(5, seed=77)):
        write_photo(tmp_path / f"good/{i}.png", toy.photo(camera, noise_seed=i))
    Image.new("RGB", (100, 100), "white").save(tmp_path / "good/nothing.png")
    flags = ["--reference", str(folder), "--good", str(tmp_path / "good")]
    assert cli.main(["calibrate", *flags]) == 0
    calibration = load_calibration(folder / CALIBRATION)
    assert calibration.source == "given"
    assert calibration.good_names == tuple(f"{i}.png" for i in range(5))
    assert calibration.false_alarm_rate == pytest.approx(1 / 6)
    assert "1 of 6 photos are CANNOT TELL and do not count: nothing.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--folds", "7"), "--folds 7: with 12 photos from 2 to 6"),
        (("--folds", "3", "--held-out-every", "4"), "give one"),
        (("--folds", "0", "--map", "comparer"), "give --folds 4 too"),
        (("--folds", "3", "--false-alarm-rate", "0.05"), "needs 19"),
        (("--held-out-every", "4", "--false-alarm-rate", "0.1"), "3 good photos"),
    ],
)
def test_a_fit_that_cannot_be_calibrated_as_asked_is_refused_before_it_begins(
    scene, tmp_path, capsys, flags, words
):
    assert cli.main(["fit", "--scene", str(scene), "--workspace", str(tmp_path), *SMALL, *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "references").exists()
