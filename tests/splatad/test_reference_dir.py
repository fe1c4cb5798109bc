"""A reference folder as the commands use it: written whole, read back the same, found by name."""

import json
from dataclasses import replace

import pytest
import torch

from detect.calibrate import LEAST_THRESHOLD
from detect.expected import FITTED_WEIGHT, residual_sums
from prepare.errors import InputError, MissingPartError, UsageError
from splatad import reference_dir
from splatad.reference_dir import (
    CALIBRATION,
    EXPECTED,
    INDEX,
    SPLATS,
    choose_device,
    find_reference,
    find_scene,
    finish_reference,
    load_whole_reference,
)
from splatad.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_a_finished_reference_comes_back_from_its_folder(toy):
    read = load_whole_reference(toy.folder)
    for name, tensor in toy.reference.gaussians.tensors().items():
        assert torch.equal(getattr(read.reference.gaussians, name), tensor)
    assert read.calibration == toy.loaded.calibration
    assert torch.equal(read.detector.expected.variance, toy.loaded.detector.expected.variance)
    assert torch.equal(read.index.world_to_cam, toy.loaded.index.world_to_cam)
    assert torch.equal(read.levels.at(50).means, toy.loaded.levels.at(50).means)
    assert sorted(path.name for path in toy.folder.iterdir()) == sorted(
        [SPLATS, INDEX, EXPECTED, CALIBRATION, "reference.json"]
    )


def test_calibration_scores_the_held_out_photos_only(toy):
    calibration = toy.loaded.calibration
    held_out = [view.name for view in toy.reference.views if view.held_out]
    assert list(calibration.good_names) == held_out
    assert calibration.source == "held-out"
    assert calibration.threshold == max(
        *calibration.good_scores, LEAST_THRESHOLD
    )  # ten photos, a rate of a tenth
    assert min(calibration.good_scores) > 0


def test_residuals_are_summed_over_all_photos_with_the_held_out_ones_counting_more(toy):
    total = None
    for view, photo in zip(toy.reference.views, toy.photos, strict=True):
        sums = residual_sums(toy.reference, photo)
        weight = 1.0 if view.held_out else FITTED_WEIGHT
        total = sums.plus(sums, weight - 1.0) if total is None else total.plus(sums, weight)
    expected = total.expected()
    assert torch.allclose(toy.loaded.detector.expected.seen, expected.seen, rtol=1e-3, atol=1e-2)
    assert torch.allclose(toy.loaded.detector.expected.variance, expected.variance, rtol=1e-2, atol=1e-6)


def test_with_fits_that_have_not_seen_them_all_photos_are_scored_by_these(toy, tmp_path, instant):
    """Splats without the stripe's side stand for a fit that knows less: its photos score higher than by the reference."""
    views = tuple(replace(view, held_out=False) for view in toy.reference.views[:4])
    reference = replace(toy.reference, views=views)
    few = replace(reference.gaussians, sh=0.8 * reference.gaussians.sh)
    unseen = [reference.gaussians, few, reference.gaussians, few]
    loaded = finish_reference(tmp_path, reference, toy.photos[:4], 0.5, unseen=unseen)
    assert loaded.calibration.source == "cross-fitted"
    assert loaded.calibration.good_names == tuple(view.name for view in views)
    a, b, c, d = loaded.calibration.good_scores
    assert min(b, d) > max(a, c)
    assert torch.equal(loaded.reference.gaussians.means, toy.reference.gaussians.means)


@pytest.fixture
def instant(toy, monkeypatch):
    """finish_reference without rendering an index again."""
    monkeypatch.setattr(reference_dir, "build_index", lambda reference, levels, on_view: toy.loaded.index)


def test_without_held_out_photos_the_fitted_ones_are_scored_and_that_is_said(toy, tmp_path, instant):
    views = tuple(replace(view, held_out=False) for view in toy.reference.views[:3])
    loaded = finish_reference(tmp_path, replace(toy.reference, views=views), toy.photos[:3], 0.25)
    assert loaded.calibration.good_names == tuple(view.name for view in views)
    assert loaded.calibration.source == "fitted"
    assert "also fitted" in loaded.calibration.note


def test_progress_is_told_by_stage_to_the_end(toy, tmp_path, instant):
    told = []
    views = toy.reference.views[1:3]  # the second is held out
    finish_reference(
        tmp_path,
        replace(toy.reference, views=views),
        toy.photos[1:3],
        0.5,
        on_step=lambda *step: told.append(step),
    )
    assert told == [("what good photos leave", 1, 2), ("what good photos leave", 2, 2), ("calibration", 1, 1)]


def test_reference_json_comes_last_so_that_an_interrupted_finish_is_seen(toy, tmp_path, instant, monkeypatch):
    def fails(path, calibration):
        raise InputError("no space left")

    monkeypatch.setattr(reference_dir, "save_calibration", fails)
    with pytest.raises(InputError, match="no space left"):
        finish_reference(
            tmp_path, replace(toy.reference, views=toy.reference.views[1:3]), toy.photos[1:3], 0.5
        )
    assert not (tmp_path / "reference.json").exists()


@pytest.mark.parametrize("name", [SPLATS, INDEX, EXPECTED, CALIBRATION, "reference.json"])
def test_a_folder_with_a_file_missing_is_refused_with_that_files_name(toy, tmp_path, name):
    for path in toy.folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=name):
        load_whole_reference(tmp_path)


def test_statistics_of_other_splats_are_refused(toy, tmp_path):
    """Files of two fits mixed in one folder."""
    from safetensors.torch import load_file, save_file

    for path in toy.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / EXPECTED)
    save_file({"variance": tensors["variance"][:-5].clone(), "seen": tensors["seen"][:-5].clone(),
               "background": tensors["background"]}, tmp_path / EXPECTED)  # fmt: skip
    with pytest.raises(InputError, match=rf"{EXPECTED}: .*splatad fit"):
        load_whole_reference(tmp_path)


def workspace(tmp_path, references=(), scenes=()):
    for name in references:
        (tmp_path / "references" / name).mkdir(parents=True)
        (tmp_path / "references" / name / "reference.json").write_text("{}")
    for name in scenes:
        (tmp_path / "scenes" / name).mkdir(parents=True)
        (tmp_path / "scenes" / name / "transforms.json").write_text(json.dumps({}))
    return Workspace(tmp_path)


def test_the_only_reference_and_scene_are_meant_when_none_is_named(tmp_path):
    place = workspace(tmp_path, ["car"], ["car"])
    assert find_reference(place, None, None) == tmp_path / "references" / "car"
    assert find_scene(place, None, None) == tmp_path / "scenes" / "car"
    assert find_reference(place, "car", None) == tmp_path / "references" / "car"


@pytest.mark.parametrize(("find", "kind"), [(find_reference, "reference"), (find_scene, "scene")])
def test_names_that_do_not_decide_are_usage_errors_that_offer_the_right_ones(tmp_path, find, kind):
    with pytest.raises(UsageError, match=f"no (fitted|prepared) {kind}"):
        find(workspace(tmp_path / "empty"), None, None)
    place = workspace(tmp_path, ["01Gorilla", "02Unicorn"], ["01Gorilla", "02Unicorn"])
    with pytest.raises(UsageError, match=r"several .*01Gorilla, 02Unicorn.*--class"):
        find(place, None, None)
    with pytest.raises(UsageError, match=r"--class 1Gorila: no such .*did you mean 01Gorilla\?"):
        find(place, "1Gorila", None)
    with pytest.raises(UsageError, match="there are: 01Gorilla, 02Unicorn"):
        find(place, "zzz", None)


def test_a_folder_given_outright_is_taken(tmp_path):
    place = workspace(tmp_path, ["a", "b"])
    assert find_reference(place, None, tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert find_scene(place, None, tmp_path) == tmp_path
    with pytest.raises(InputError, match="no such folder"):
        find_scene(place, None, tmp_path / "elsewhere")


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(MissingPartError, match="--device cuda"):
        choose_device("cuda")
    with pytest.raises(UsageError, match="--device tpu: unknown"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda:1") == torch.device("cuda:1")


def test_landmarks_are_kept_with_the_reference_and_go_when_it_is_finished_without(toy, tmp_path, monkeypatch):
    import pose.landmarks
    from pose.keypoints import Keypoints

    class Corners:
        """A keypoint every fifth pixel of the part, described by its place."""

        name = "corners"

        def extract(self, rgb, mask=None):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            kept = (rows % 5 == 2) & (columns % 5 == 2)
            places = torch.stack([columns[kept], rows[kept]], dim=1) + 0.5
            described = torch.nn.functional.normalize(
                torch.cat([places, rgb[rows[kept], columns[kept]]], dim=1), dim=1
            )
            return Keypoints(places, described, torch.ones(len(places)))

    monkeypatch.setattr(pose.landmarks, "LANDMARK_DIRECTIONS", 4)
    monkeypatch.setattr(reference_dir, "extractor", lambda name: Corners())
    monkeypatch.setattr("pose.locate.extractor", lambda name: Corners())
    few = replace(toy.reference, views=toy.reference.views[:10])
    made = finish_reference(tmp_path, few, toy.photos[:10], 0.5, keypoints="corners")
    read = load_whole_reference(tmp_path)
    assert len(made.landmarks) > 50
    assert torch.equal(read.landmarks.points, made.landmarks.points)
    assert torch.equal(read.landmarks.descriptors, made.landmarks.descriptors)
    assert read.landmarks.extractor == "corners"
    finish_reference(tmp_path, few, toy.photos[:10], 0.5)
    assert load_whole_reference(tmp_path).landmarks is None
