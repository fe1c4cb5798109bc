"""Rough cameras: rolled, nearer, farther and off-centre photos, which also fixes every sign on the way."""

import math
from dataclasses import replace

import pytest
import torch

from detect.metrics import rotation_error_deg
from pose.coarse import APART_DEG, coarse_cameras
from pose.index import PoseIndex, centred_patch, silhouette_of, whole_patch
from pose.locate import difference_from_background
from pose.se3 import rotation_from_vector
from prepare.camera import Camera
from prepare.image import resize
from recon.rasterize import rasterize

pytestmark = pytest.mark.usefixtures("one_torch_thread")
WHITE = torch.ones(3)


def seen(toy, camera, most=12):
    """Hypotheses for a noiseless photo from `camera`, at the index's size."""
    render = rasterize(toy.reference.gaussians, camera, WHITE)
    width, height = (64, round(64 * camera.height / camera.width)) if camera.width >= camera.height else (
        round(64 * camera.width / camera.height), 64,
    )  # fmt: skip
    small, alpha = resize(render.rgb, width, height), resize(render.alpha[..., None], width, height)[..., 0]
    lens = camera.resized(width, height).moved(torch.eye(4))
    return coarse_cameras(
        toy.loaded.index, difference_from_background(small, alpha, WHITE), alpha, lens, most=most
    )


def changed(camera, roll_deg=0.0, distance=1.0, shift=(0.0, 0.0)):
    """`camera` rolled about its axis, at `distance` times the distance, turned aside to move the part in the image."""
    roll = rotation_from_vector(torch.tensor([0.0, 0.0, math.radians(roll_deg)]))
    aside = rotation_from_vector(torch.tensor([shift[1], shift[0], 0.0]))
    moved = camera.world_to_cam.clone()
    moved[:3, :3] = aside @ roll @ moved[:3, :3]
    moved[:3, 3] = aside @ roll @ (moved[:3, 3] * distance)
    return camera.moved(moved)


def close(hypothesis, truth):
    turn = float(rotation_error_deg(hypothesis.camera.world_to_cam, truth.world_to_cam))
    distance = float(hypothesis.camera.centre.norm() / truth.centre.norm())
    return turn < 15 and abs(distance - 1) < 0.15


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"roll_deg": 40.0},
        {"roll_deg": -40.0},
        {"distance": 0.75},
        {"distance": 1.3},
        {"shift": (0.1, 0.0)},
        {"shift": (0.0, 0.1)},
        {"roll_deg": 40.0, "distance": 1.3, "shift": (-0.1, 0.08)},
        {"roll_deg": 130.0, "distance": 1.2, "shift": (0.12, -0.07)},
    ],
)
def test_a_hypothesis_lies_near_the_true_camera(toy, how, seed):
    truth = changed(toy.cameras(4, seed=11)[seed], **how)
    hypotheses = seen(toy, truth)
    assert any(close(hypothesis, truth) for hypothesis in hypotheses)
    # And it puts the part where the photo shows it.
    best = next(hypothesis for hypothesis in hypotheses if close(hypothesis, truth))
    if best.source == "centred":
        middle = torch.zeros(1, 3)
        wanted = truth.resized(64, 64).project(middle)[0, :2]
        assert (best.camera.project(middle)[0, :2] - wanted).norm() < 4


def test_another_lens_gives_another_distance(toy):
    truth = toy.cameras(1, seed=3)[0]
    tele = Camera(changed(truth, distance=1.5).world_to_cam, 1.5 * 138.9, 1.5 * 138.9, 50.0, 50.0, 100, 100)
    centred = [h for h in seen(toy, tele) if h.source == "centred"]
    assert any(close(hypothesis, tele) for hypothesis in centred)


@pytest.mark.parametrize(("width", "height"), [(100, 70), (70, 100)])
def test_photos_of_other_shapes_are_found_too(toy, width, height):
    square = toy.cameras(1, seed=5)[0]
    truth = Camera(square.world_to_cam, 110.0, 110.0, width / 2 + 3, height / 2 - 2, width, height)
    assert any(close(h, truth) for h in seen(toy, truth) if h.source == "centred")


def test_a_part_that_looks_the_same_upside_down_is_tried_both_ways():
    lens = Camera(torch.eye(4), 80.0, 80.0, 32.0, 32.0, 64, 64)
    pose = torch.eye(4)
    pose[2, 3] = 3.0
    bar = torch.zeros(64, 64, 3)
    bar[26:38, 8:56] = -0.5
    alpha = (bar[..., 0] != 0).float()
    place = silhouette_of(alpha)
    index = PoseIndex(
        pose[None], whole_patch(bar)[None], centred_patch(bar, place)[None],
        torch.tensor([[place.u, place.v, place.radius]]) / 64, lens,
    )  # fmt: skip
    centred = [h for h in coarse_cameras(index, bar, alpha, lens) if h.source == "centred"]
    turns = sorted(float(rotation_error_deg(h.camera.world_to_cam, pose)) for h in centred)
    assert turns == pytest.approx([0.0, 180.0], abs=0.5)
    end = bar.clone()
    end[:, 40:] *= 4  # a dark end tells the ways apart
    index = replace(index, centred=centred_patch(end, place)[None])
    (only,) = [h for h in coarse_cameras(index, end, alpha, lens) if h.source == "centred"]
    assert float(rotation_error_deg(only.camera.world_to_cam, pose)) < 0.5


def test_hypotheses_come_best_first_no_more_than_asked_and_apart(toy):
    hypotheses = seen(toy, toy.cameras(1, seed=7)[0], most=9)
    axes = {tuple(h.camera.world_to_cam[2, :3].tolist()) for h in hypotheses}
    assert 0 < len(axes) <= 9
    assert len(hypotheses) <= 15  # one more for each of the six that may be turned
    similarities = [hypothesis.similarity for hypothesis in hypotheses]
    assert similarities == sorted(similarities, reverse=True)
    assert hypotheses[0].similarity > 0.9
    whole = [h.camera.world_to_cam[2, :3] for h in hypotheses if h.source == "whole"]
    assert len(whole) == 3
    for i, axis in enumerate(whole):
        for other in whole[:i]:
            assert float(axis @ other) <= math.cos(math.radians(APART_DEG)) + 1e-6


def test_an_empty_photo_has_no_hypotheses(toy):
    lens = toy.reference.camera.resized(64, 64)
    assert coarse_cameras(toy.loaded.index, torch.zeros(64, 64, 3), torch.zeros(64, 64), lens) == ()
