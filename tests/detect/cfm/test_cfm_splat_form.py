"""CFM on splats: a planted stain is found, seeds and files give the same bits, limits follow from the good views."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from detect.anomaly_map import AnomalyMap
from detect.calibrate import recalibrated
from detect.cfm.splat_checkpoint import load_splat_form, save_splat_form
from detect.cfm.splat_form import (
    GoodView,
    JoinedDetector,
    SplatForm,
    SplatFormConfig,
    SplatFormDetector,
    calibration_of,
    joined,
)
from detect.cfm.splat_train import train_splat_form, trained_pair
from prepare.errors import InputError
from recon.rasterize import RasterOptions, rasterize

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SMALL = SplatFormConfig(steps=60, rows=256, least_hidden=32)
FEW = 8  # of the toy's views, two of them held out


def few(toy):
    """The toy's difference detector and photos with fewer views."""
    reference = replace(toy.reference, views=toy.reference.views[:FEW])
    return replace(toy.loaded.detector, reference=reference), toy.photos[:FEW]


@pytest.fixture(scope="module")
def form(toy):
    detector, photos = few(toy)
    return train_splat_form(detector, photos, SMALL)


@pytest.fixture(scope="module")
def detector(toy, form):
    return SplatFormDetector.open(toy.reference, toy.loaded.detector.expected, form)


def looked_at(toy, seed=51):
    """A new camera's good photo, with what the splats show there."""
    camera = toy.cameras(1, seed=seed)[0]
    photo = toy.photo(camera, noise_seed=7)
    return photo, rasterize(toy.reference.gaussians, camera, torch.ones(3), options=RasterOptions(depth=True))


def stained(photo):
    rgb = photo.rgb.clone()
    rgb[45:55, 45:55] = torch.tensor([0.9, 0.1, 0.9])
    return rgb


@pytest.mark.parametrize("whose", ["cfm", "joined"])
def test_a_planted_stain_is_where_the_map_is_hottest_and_scores_above_the_good_photo(toy, detector, whose):
    judge = detector if whose == "cfm" else JoinedDetector(toy.loaded.detector, detector)
    photo, render = looked_at(toy)
    good = judge.anomaly_map(photo.rgb, photo.alpha, render, photo.camera)
    bad = judge.anomaly_map(stained(photo), photo.alpha, render, photo.camera)
    assert bad.score > 1.5 * good.score
    row, column = divmod(int(bad.values.argmax()), 100)
    assert 43 <= row < 57
    assert 43 <= column < 57
    assert bad.values.shape == bad.known.shape == (100, 100)
    assert not bad.values[~bad.known].any()


def test_views_kept_from_the_splats_are_judged_and_one_network_learns_from_the_others(toy, form):
    held = [view.name for view in toy.reference.views[:FEW] if view.held_out]
    assert form.held_out
    assert [view.name for view in form.good] == held
    assert len(form.pairs) == 1
    assert all(view.score > 0 and 0.3 < view.ratio < 3 for view in form.good)


def test_without_such_views_each_half_is_judged_by_the_network_of_the_other(toy):
    detector, photos = few(toy)
    views = tuple(replace(view, held_out=False) for view in detector.reference.views[:4])
    detector = replace(detector, reference=replace(detector.reference, views=views))
    form = train_splat_form(detector, photos[:4], replace(SMALL, steps=2))
    assert not form.held_out
    assert [view.name for view in form.good] == [view.name for view in views]
    assert len(form.pairs) == 2
    # The networks that judge a photo leave out neither: their maps are averaged.
    assert not torch.equal(form.pairs[0].photo_mean, form.pairs[1].photo_mean)


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads_and_another_seed_others(toy, tmp_path):
    detector, photos = few(toy)
    detector = replace(detector, reference=replace(detector.reference, views=detector.reference.views[:4]))
    photos, short = photos[:4], replace(SMALL, steps=3)

    def bytes_of(config, threads, name):
        torch.set_num_threads(threads)
        save_splat_form(tmp_path / name, train_splat_form(detector, photos, config), toy.reference.gaussians)
        return (tmp_path / name).read_bytes()

    first = bytes_of(short, 1, "a")
    assert bytes_of(short, 2, "b") == first
    assert torch.get_num_threads() == 2
    assert bytes_of(replace(short, seed=1), 1, "c") != first


def test_saved_equals_loaded(toy, tmp_path, form, detector):
    save_splat_form(tmp_path / "cfm.safetensors", form, toy.reference.gaussians)
    read = load_splat_form(tmp_path / "cfm.safetensors", toy.reference.gaussians, "splatad train cfm")
    assert (read.config, read.good, read.level, read.held_out) == (
        form.config,
        form.good,
        form.level,
        form.held_out,
    )
    photo, render = looked_at(toy)
    arguments = (photo.rgb, photo.alpha, render, photo.camera)
    assert torch.equal(
        replace(detector, form=read).anomaly_map(*arguments).values, detector.anomaly_map(*arguments).values
    )


def test_files_that_are_missing_damaged_or_of_other_splats_get_one_line_with_the_command(
    toy, tmp_path, form, other_toy_gaussians
):
    command = "splatad train cfm --class toy"
    path = tmp_path / "cfm.safetensors"

    def complaint(gaussians=toy.reference.gaussians):
        with pytest.raises(InputError) as caught:
            load_splat_form(path, gaussians, command)
        said = str(caught.value)
        assert command in said
        assert "\n" not in said
        return said

    assert "not trained" in complaint()
    path.write_bytes(b"no weights")
    assert "cannot be read" in complaint()
    save_file({"a": torch.zeros(1)}, path)
    assert "not weights of this detector" in complaint()
    save_splat_form(path, form, toy.reference.gaussians)
    assert "of other splats" in complaint(other_toy_gaussians)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["splatad"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["0.to_photo.0.weight"]
    save_file(tensors, path, metadata={"splatad": json.dumps(header)})
    assert "not these networks'" in complaint()
    save_file(tensors, path, metadata={"splatad": json.dumps(header | {"config": {"colour": 1}})})
    assert "header" in complaint()


def test_joining_multiplies_by_the_root_of_the_networks_map():
    base = AnomalyMap(torch.full((20, 20), 2.0), torch.ones(20, 20, dtype=torch.bool), 2.0)
    relative = torch.zeros(20, 20)
    relative[:2] = 3.9
    made = joined(base, relative)
    assert torch.allclose(made.values[:2], torch.tensor(4.0))  # 2 * (3.9 + 0.1) ** 0.5
    assert torch.allclose(made.values[2:], torch.tensor(2 * 0.1**0.5))
    assert made.score == pytest.approx(4.0)


def given_scores(form, scores, ratios, held_out=False):
    names = [f"{i}.png" for i in range(len(scores))]
    good = tuple(GoodView(n, s, r, 0.0) for n, s, r in zip(names, scores, ratios, strict=True))
    return replace(form, good=good, held_out=held_out)


def test_the_limit_of_cfm_is_the_conformal_rank_of_its_good_views(toy, form):
    scores = [1.0 + 0.1 * i for i in range(19)]
    base = replace(toy.loaded.calibration, false_alarm_rate=0.1)
    made = calibration_of("cfm", given_scores(form, scores, scores), base, toy.reference)
    assert made.threshold == pytest.approx(scores[17])  # rank 18 of 19 at a tenth
    assert (made.detector, made.source) == ("cfm", "cross-fitted")
    assert "the splats had" in made.note
    assert made.belief == base.belief
    kept = calibration_of("cfm", given_scores(form, scores, scores, held_out=True), base, toy.reference)
    assert kept.source == "held-out"
    assert "the splats had" not in kept.note
    fewer = calibration_of("cfm", given_scores(form, scores[:3], scores[:3]), base, toy.reference)
    assert fewer.false_alarm_rate == pytest.approx(0.25)  # what three photos support
    with pytest.raises(InputError, match="train it again"):
        calibration_of("cfm", replace(form, good=()), base, toy.reference)


def test_the_joined_limit_is_of_the_differences_scores_times_what_joining_changes(toy, form):
    count = 19
    scores = tuple(1.0 + 0.1 * i for i in range(count))
    base = recalibrated(
        replace(
            toy.loaded.calibration,
            good_scores=scores,
            good_names=tuple(f"{i}.png" for i in range(count)),
            source="cross-fitted",
        ),
        0.1,
    )
    ratios = [2.0 if i == 0 else 0.5 for i in range(count - 1)]  # of the last there is no view
    made = calibration_of("difference+cfm", given_scores(form, [9.0] * 18, ratios), base, toy.reference)
    assert made.good_scores == pytest.approx((2.0, *(0.5 * s for s in scores[1:])))
    assert made.threshold == pytest.approx(sorted(made.good_scores)[17])
    assert made.detector == f"{base.detector}+cfm"
    assert made.difficulty == base.difficulty


def test_a_map_does_not_depend_on_what_was_judged_before(toy, detector):
    photo, render = looked_at(toy)
    other, other_render = looked_at(toy, seed=52)
    alone = detector.anomaly_map(photo.rgb, photo.alpha, render, photo.camera).values
    detector.anomaly_map(other.rgb, other.alpha, other_render, other.camera)
    torch.set_num_threads(2)
    assert torch.allclose(
        detector.anomaly_map(photo.rgb, photo.alpha, render, photo.camera).values, alone, atol=1e-5
    )


def test_too_few_views_are_refused(toy):
    detector, photos = few(toy)
    detector = replace(detector, reference=replace(detector.reference, views=detector.reference.views[:3]))
    with pytest.raises(InputError, match="3 views are too few"):
        train_splat_form(detector, photos[:3], SMALL)


@pytest.mark.parametrize(
    ("fusion", "trained"), [("photo", (True, False)), ("shape", (False, True)), ("sum", (True, True))]
)
def test_what_the_map_does_not_ask_is_not_trained(fusion, trained):
    photo, shape = torch.rand(100, 5), torch.rand(100, 7)
    config = replace(SMALL, steps=3, fusion=fusion)
    after, before = (
        trained_pair(photo, shape, one, seed=0) for one in (config, replace(config, steps=1, rate=1e-12))
    )
    assert (
        tuple(
            not torch.allclose(getattr(after, way)[0].weight, getattr(before, way)[0].weight, atol=1e-9)
            for way in ("to_photo", "to_shape")
        )
        == trained
    )


def test_about_is_plain_and_read_back(toy, tmp_path, form):
    told = SplatForm(form.config, form.pairs, form.level, form.good, form.held_out, {"reference": "toy"})
    save_splat_form(tmp_path / "a.safetensors", told, toy.reference.gaussians)
    assert load_splat_form(tmp_path / "a.safetensors", toy.reference.gaussians, "x").about == {
        "reference": "toy"
    }
