"""Photos of known cameras are found and believed; what is no such photo is not; a result is the photo's alone."""

import math

import pytest
import torch

from detect.metrics import rotation_error_deg
from pose.locate import BeliefLimits, LocateConfig, _Judge, _turned, locate, viewed_from
from pose.se3 import turn_deg
from recon.gaussians import Gaussians
from recon.kernel.library import kernel_info, set_threads
from recon.rasterize import rasterize

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def found(toy, photo, **options):
    loaded = toy.loaded
    return locate(
        loaded.reference, loaded.index, loaded.levels, photo.rgb, photo.alpha, photo.camera, **options
    )


@pytest.fixture(scope="module")
def photos(toy):
    """Twelve photos from random directions, some rolled, nearer or farther."""
    cameras = []
    for i, camera in enumerate(toy.cameras(12, seed=31)):
        moved = camera.world_to_cam.clone()
        moved[:3, 3] *= (1.0, 1.15, 0.9)[i % 3]
        cameras.append(camera.moved(moved))
    return [toy.photo(camera, noise_seed=100 + i) for i, camera in enumerate(cameras)]


@pytest.fixture(scope="module")
def results(toy, photos):
    return [found(toy, photo) for photo in photos]


def test_random_cameras_are_found_within_a_tenth_of_a_degree_and_believed(photos, results):
    for photo, result in zip(photos, results, strict=True):
        truth = photo.camera
        assert (
            float(rotation_error_deg(result.camera.world_to_cam.double(), truth.world_to_cam.double())) < 0.1
        )
        assert (result.camera.centre - truth.centre).norm() < 0.005 * truth.centre.norm()
        assert result.believed
        assert result.reasons == ()
        assert result.inliers > 0.95
        assert result.overlap > 0.97
        assert 0 < result.sigma_deg < 0.1
        assert 0 < result.agreement <= 1
        assert (result.camera.width, result.camera.height) == (100, 100)


def test_the_stated_uncertainty_is_of_the_size_of_the_error(photos, results):
    errors = [
        float(rotation_error_deg(r.camera.world_to_cam.double(), p.camera.world_to_cam.double()))
        for p, r in zip(photos, results, strict=True)
    ]
    rms = (sum(e * e for e in errors) / len(errors)) ** 0.5
    sigma = sum(r.sigma_deg for r in results) / len(results)
    assert 0.3 < rms / sigma < 3


def test_nearest_view_is_the_angle_to_the_nearest_fitted_photo(toy, photos, results):
    for photo, result in zip(photos[:3], results, strict=False):
        centre = photo.camera.centre / photo.camera.centre.norm()
        fitted = [v.camera.centre / v.camera.centre.norm() for v in toy.reference.views if not v.held_out]
        nearest = min(float(torch.rad2deg(torch.acos((centre @ other).clamp(-1, 1)))) for other in fitted)
        assert result.nearest_view_deg == pytest.approx(nearest, abs=0.2)


@pytest.mark.parametrize("roll_deg", [180.0, -35.0])
def test_a_rolled_photo_is_found(toy, roll_deg):
    from pose.se3 import rotation_from_vector

    camera = toy.cameras(3, seed=33)[1]
    turned = torch.eye(4)
    turned[:3, :3] = rotation_from_vector(torch.tensor([0.0, 0.0, roll_deg]).deg2rad())
    photo = toy.photo(camera.moved(turned @ camera.world_to_cam), noise_seed=7)
    result = found(toy, photo)
    assert result.believed
    assert (
        float(rotation_error_deg(result.camera.world_to_cam.double(), photo.camera.world_to_cam.double()))
        < 0.1
    )


def test_a_photo_cropped_by_its_frame_is_found(toy):
    from prepare.camera import look_at

    pose = look_at(
        torch.tensor([1.4, -2.0, 1.2]), torch.tensor([0.55, 0.3, 0.1]), torch.tensor([0.0, 0.0, 1.0])
    )
    photo = toy.photo(toy.reference.camera.moved(pose), noise_seed=5)
    border = torch.cat([photo.alpha[:, 0], photo.alpha[:, -1], photo.alpha[0], photo.alpha[-1]])
    assert (border > 0.5).sum() > 10
    result = found(toy, photo)
    assert result.believed
    assert float(rotation_error_deg(result.camera.world_to_cam.double(), pose.double())) < 0.1


def test_a_part_half_out_of_the_photo_is_found_but_not_believed(toy, photos):
    camera = photos[0].camera
    aside = torch.eye(4)
    by = math.atan(0.5 * camera.width / camera.fl_x)  # the part's middle at the photo's border
    aside[0, 0] = aside[2, 2] = math.cos(by)
    aside[0, 2], aside[2, 0] = math.sin(by), -math.sin(by)
    photo = toy.photo(camera.moved(aside @ camera.world_to_cam), noise_seed=4)
    result = found(toy, photo)
    assert not result.believed
    assert result.belief < 0.5
    # Also where the camera is right: half a part is not inspected.
    judge = _Judge(toy.reference, toy.loaded.levels, photo.rgb, photo.alpha, torch.ones(3), BeliefLimits())
    assert 0.4 < judge.in_frame(photo.camera) < 0.6
    assert judge.in_frame(camera) > 0.99
    whole = photos[0]
    strict = found(toy, whole, limits=BeliefLimits(least_in_frame=1.1))
    assert [reason for reason in strict.reasons if "within the photo" in reason]


def doubled(gaussians):
    """The splats right of the z axis, and once more half a turn about it away: two sides that look alike."""
    gaussians = gaussians.select(torch.nonzero(gaussians.means[:, 0] > 0.03)[:, 0])
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    w, x, y, z = gaussians.quats.unbind(dim=1)
    turned = Gaussians(
        gaussians.means @ turn.T, torch.stack([-z, -y, x, w], dim=1), gaussians.log_scales,
        gaussians.logit_opacities, gaussians.sh[:, :1],
    )  # fmt: skip
    once = Gaussians(
        gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.logit_opacities, gaussians.sh[:, :1]
    )
    pairs = zip(once.tensors().values(), turned.tensors().values(), strict=True)
    return Gaussians(*(torch.cat(pair) for pair in pairs))


def test_a_part_that_looks_the_same_from_two_sides_says_so(toy):
    from dataclasses import replace

    from pose.index import build_index
    from pose.pyramid import SplatLevels

    alike = doubled(toy.reference.gaussians)
    reference = replace(toy.reference, gaussians=alike)
    levels = SplatLevels(alike)
    camera = toy.cameras(3, seed=61)[0]
    with torch.no_grad():
        render = rasterize(alike, camera, torch.ones(3))
    result = locate(
        reference, build_index(reference, levels), levels, render.rgb.clamp(0, 1), render.alpha, camera
    )
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    sides = [camera.world_to_cam, camera.world_to_cam @ turn]
    ends = [result.camera, *result.alternatives]
    assert len(ends) == 2
    for side in sides:  # each of the two is among the answers
        assert min(float(rotation_error_deg(end.world_to_cam, side)) for end in ends) < 0.5
    assert result.believed
    assert "looks the same from 2 sides" in result.ambiguity


def test_further_sides_of_a_box_like_part_follow_from_two_turns_at_right_angles(toy):
    centre = torch.tensor([0.1, -0.2, 0.05])
    about = torch.eye(4)
    about[:3, 3] = centre
    flips = [torch.diag(torch.tensor(d)) for d in ([1.0, 1, 1, 1], [-1.0, -1, 1, 1], [1.0, -1, -1, 1])]
    camera = toy.cameras(1, seed=5)[0]
    alike = [camera.moved(camera.world_to_cam @ about @ f @ about.inverse()) for f in flips]
    sides = _turned(alike, centre)
    assert len(sides) == 21  # of the 24 turns of a box all that are not known
    seen = [*alike, *sides]
    for side in seen:
        turn = (about.inverse() @ camera.world_to_cam.inverse() @ side.world_to_cam @ about).round(decimals=4)
        assert torch.equal(turn.abs().sum(dim=0), torch.ones(4))  # axes to axes, and about the part's centre
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert float(rotation_error_deg(one.world_to_cam, other.world_to_cam)) > 80


def same(a, b):
    return (
        torch.equal(a.camera.world_to_cam, b.camera.world_to_cam)
        and (a.believed, a.inliers, a.overlap, a.sigma_deg, a.agreement, a.hypotheses)
        == (b.believed, b.inliers, b.overlap, b.sigma_deg, b.agreement, b.hypotheses)
    )  # fmt: skip


def test_the_same_photo_gives_the_same_bits_in_any_order(toy, photos, results):
    assert same(found(toy, photos[4]), results[4])
    assert same(found(toy, photos[1]), results[1])


def test_the_number_of_threads_does_not_change_the_result(toy, photos, results):
    before = kernel_info().threads
    try:
        for threads in (1, 2):
            set_threads(threads)
            assert same(found(toy, photos[2]), results[2])
    finally:
        set_threads(before)


def test_a_blank_photo_has_no_camera(toy, photos):
    blank = toy.photo(photos[0].camera)
    blank.rgb.fill_(1.0)
    blank.alpha.zero_()
    assert found(toy, blank) is None


def unbelieved(result):
    return result is not None and not result.believed and len(result.reasons) > 0 and all(result.reasons)


def test_noise_is_not_believed(toy, photos):
    noise = toy.photo(photos[0].camera)
    noise.rgb.copy_(torch.rand(100, 100, 3, generator=torch.Generator().manual_seed(0)))
    noise.alpha.fill_(1.0)
    assert unbelieved(found(toy, noise))


def test_another_part_is_not_believed(toy, other_toy_gaussians):
    camera = toy.cameras(2, seed=41)[0]
    result = found(toy, toy.photo(camera, noise_seed=1, gaussians=other_toy_gaussians))
    assert unbelieved(result)
    assert "of the part looks as it should" in result.reasons[0]


def test_a_half_covered_part_is_not_believed(toy, photos):
    covered = toy.photo(photos[3].camera, noise_seed=1)
    columns = (covered.alpha > 0.5).any(dim=0).nonzero()
    middle = int(columns.float().mean())
    covered.rgb[:, :middle] = torch.tensor([0.35, 0.3, 0.25])
    covered.alpha[:, :middle] = 1.0
    assert unbelieved(found(toy, covered))


def test_limits_decide_what_is_believed(toy, photos, results):
    strict = found(
        toy,
        photos[0],
        limits=BeliefLimits(least_inliers=1.1, least_overlap=1.1, least_in_frame=1.1, most_sigma_deg=1e-9),
    )
    assert torch.equal(strict.camera.world_to_cam, results[0].camera.world_to_cam)
    assert not strict.believed
    assert len(strict.reasons) == 4
    assert strict.belief < 0.1
    assert results[0].belief > 0.9
    assert found(toy, photos[0], limits=BeliefLimits(least_part_share=0.99)) is None


def test_fewer_hypotheses_are_tried_when_so_configured(toy, photos):
    result = found(toy, photos[0], config=LocateConfig(hypotheses=3))
    assert result.hypotheses == 3
    assert found(toy, photos[0]).hypotheses > 3


@pytest.mark.parametrize("refine", ["adam", "splatpose"])
def test_a_first_order_recipe_moves_the_best_rough_camera_nearer_to_the_truth(toy, photos, refine):
    from pose.coarse import coarse_cameras
    from pose.index import RENDER_PX
    from pose.locate import difference_from_background
    from prepare.image import resize

    photo = photos[0]
    loaded = toy.loaded
    small = resize(photo.rgb, RENDER_PX, RENDER_PX)
    alpha = resize(photo.alpha[..., None].expand(-1, -1, 3).contiguous(), RENDER_PX, RENDER_PX)[..., 0]
    start = coarse_cameras(
        loaded.index,
        difference_from_background(small, alpha, loaded.reference.background),
        alpha,
        photo.camera.resized(RENDER_PX, RENDER_PX),
    )[0].camera
    result = found(toy, photo, config=LocateConfig(refine=refine))
    before, after = (
        float(rotation_error_deg(camera.world_to_cam.double(), photo.camera.world_to_cam.double()))
        for camera in (start, result.camera)
    )
    assert result.hypotheses == 1
    assert after < 0.7 * before


def test_matched_landmarks_give_the_camera_where_the_small_renders_mislead(toy, monkeypatch):
    """Landmarks are splats with descriptors of their own; the photo's keypoints are where the true camera sees them."""
    import pose.locate as module
    from pose.coarse import Hypothesis
    from pose.keypoints import Keypoints
    from pose.landmarks import Landmarks

    pytest.importorskip("poselib", reason="no solver: pip install 'splatad[photos]'")
    camera, elsewhere = toy.cameras(4, seed=71)[0], toy.cameras(4, seed=71)[2]
    photo = toy.photo(camera, noise_seed=7)
    generator = torch.Generator().manual_seed(1)
    points = toy.reference.gaussians.means[:: len(toy.reference.gaussians) // 150]
    described = torch.nn.functional.normalize(torch.randn(len(points), 32, generator=generator), dim=1)
    landmarks = Landmarks(
        points, described.half(), torch.zeros(len(points), dtype=torch.int32), "sift_colmap",
        camera.world_to_cam[None], toy.reference.camera,
    )  # fmt: skip

    class SeesLandmarks:
        name = "sift_colmap"

        def extract(self, rgb, mask=None):
            assert rgb.shape[:2] == mask.shape == (camera.height, camera.width)
            return Keypoints(camera.project(points)[:, :2], described, torch.ones(len(points)))

    monkeypatch.setattr(module, "extractor", lambda name: SeesLandmarks())
    rough = (Hypothesis(elsewhere, 0.9, "whole"),)
    monkeypatch.setattr(module, "coarse_cameras", lambda *arguments, **named: rough)
    assert rotation_error_deg(elsewhere.world_to_cam, camera.world_to_cam) > 30
    with_landmarks, without = found(toy, photo, landmarks=landmarks), found(toy, photo)
    assert rotation_error_deg(with_landmarks.camera.world_to_cam, camera.world_to_cam) < 0.1
    assert with_landmarks.believed
    assert with_landmarks.hypotheses > without.hypotheses == 1
    assert not without.believed


def test_a_turn_that_the_photo_leaves_open_altogether_is_not_believed(toy, photos, monkeypatch):
    monkeypatch.setattr("pose.locate._spread", lambda *_: (math.inf, math.inf, None))
    result = found(toy, photos[0])
    assert result.belief == 0.0
    assert not result.believed
    assert any("uncertain" in reason for reason in result.reasons)


def test_sides_that_others_vote_for_are_tried_where_the_small_renders_mislead(toy, monkeypatch):
    import pose.locate as module

    camera = toy.cameras(4, seed=71)[0]
    photo = toy.photo(camera, noise_seed=7)
    centre = toy.reference.volume.centre
    towards = torch.nn.functional.normalize(camera.centre - centre, dim=0)
    assert len(viewed_from(toy.loaded.index, centre, [towards, towards, -towards])) == 2
    coarse = module.coarse_cameras

    def misled(index, difference, alpha, lens, *, most, sides=()):
        """Nothing but what is asked for by side, and a camera behind the part."""
        found = coarse(index, difference, alpha, lens, most=most, sides=sides)
        wanted = index.world_to_cam[list(sides)]
        near = [h for h in found if any(turn_deg(h.camera.world_to_cam, pose) < 30 for pose in wanted)]
        behind = max(found, key=lambda h: turn_deg(h.camera.world_to_cam, camera.world_to_cam))
        return (*near, behind)

    monkeypatch.setattr(module, "coarse_cameras", misled)
    without, with_sides = found(toy, photo), found(toy, photo, towards=[towards])
    assert not without.believed
    assert with_sides.believed
    assert rotation_error_deg(with_sides.camera.world_to_cam, camera.world_to_cam) < 0.1
