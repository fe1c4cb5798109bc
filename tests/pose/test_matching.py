"""Matches among look-alikes, and cameras that known matches must give."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pose.keypoints import Keypoints
from pose.landmarks import Landmarks
from pose.matching import LEAST_INLIERS, LightGlue, PnpCamera, match, pnp_cameras
from prepare.camera import Camera, look_at
from prepare.errors import MissingPartError, UsageError
from prepare.weights import REGISTRY, WeightsFile

pytestmark = pytest.mark.usefixtures("one_torch_thread")

UP = torch.tensor([0.0, 0.0, 1.0])
LENS = Camera(torch.eye(4), 555.0, 555.0, 200.0, 200.0, 400, 400)
DIRECTIONS = torch.nn.functional.normalize(
    torch.tensor([[1.0, 0.1, 0.2], [0.9, 0.4, 0.1], [-1.0, 0.1, 0.1], [-0.9, -0.4, 0.0], [0.1, 1.0, 0.3]]),
    dim=1,
)
RENDERS = torch.stack([look_at(3 * d, torch.zeros(3), UP) for d in DIRECTIONS])


def unit(count: int, length: int = 64) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, length), dim=1)


def noisy(descriptors: torch.Tensor, noise: float) -> torch.Tensor:
    return torch.nn.functional.normalize(descriptors + noise * unit(*descriptors.shape), dim=1)


def sphere(count: int) -> torch.Tensor:
    return 0.8 * unit(count, 3)


def landmarks_of(points: torch.Tensor, descriptors: torch.Tensor) -> Landmarks:
    """Each point seen, with a little noise, by every render on its side of a sphere about the origin."""
    rows, views = torch.nonzero(points @ DIRECTIONS.T > 0.1, as_tuple=True)
    order = views.argsort(stable=True)
    rows, views = rows[order], views[order]
    places = points[rows] + 0.001 * torch.randn(len(rows), 3)
    return Landmarks(places, noisy(descriptors[rows], 0.1).half(), views.int(), "test", RENDERS, LENS)


def photo_of(camera: Camera, points: torch.Tensor, descriptors: torch.Tensor, clutter: int = 0) -> Keypoints:
    """What `camera` sees of the points, 0.3 px off, and `clutter` keypoints that show none of them."""
    facing = points @ torch.nn.functional.normalize(camera.centre, dim=0) > 0.35
    at = camera.project(points[facing])[:, :2] + 0.3 * torch.randn(int(facing.sum()), 2)
    positions = torch.cat([at, 100 + 200 * torch.rand(clutter, 2)])
    described = torch.cat([noisy(descriptors[facing], 0.3), unit(clutter, descriptors.shape[1])])
    return Keypoints(positions, described, torch.ones(len(positions)))


def turn_deg(a: Camera, b: Camera) -> float:
    relative = a.world_to_cam[:3, :3].double() @ b.world_to_cam[:3, :3].double().T
    return math.degrees(math.acos(max(-1.0, min(1.0, (float(relative.trace()) - 1) / 2))))


CAMERA = LENS.moved(look_at(torch.tensor([2.8, 0.9, 0.7]), torch.tensor([0.05, 0.0, 0.02]), UP))


def test_a_place_seen_in_many_renders_is_matched_and_clutter_is_not():
    points, descriptors = sphere(300), unit(300)
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors, clutter=40)
    shown = len(photo) - 40
    matches = match(photo, landmarks)
    real = matches.photo < shown
    seen = CAMERA.project(landmarks.points[matches.landmark])[:, :2]
    assert ((seen - photo.positions[matches.photo]).norm(dim=1) < 3)[real].all()
    assert real.sum() > 0.9 * shown
    assert (~real).sum() <= 4  # of 40
    # Were the second nearest landmark taken wherever it lies, copies of the same place would fail one another.
    similarity = (photo.descriptors @ landmarks.descriptors.float().T).topk(2, dim=1).values
    distance = (2 - 2 * similarity).sqrt()
    assert (distance[:shown, 0] > 0.9 * distance[:shown, 1]).float().mean() > 0.5


def test_look_alikes_elsewhere_on_the_part_are_not_matched_unless_the_ratio_test_is_left_out():
    points, descriptors = sphere(200), unit(200)
    points[100:] = -points[:100]
    descriptors[100:] = descriptors[:100]
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors)
    assert len(match(photo, landmarks)) < 0.1 * len(photo)
    assert len(match(photo, landmarks, ratio=1.0)) > 0.9 * len(photo)
    # On one side alone there are none.
    near = torch.nonzero(landmarks.view < 2)[:, 0]
    on_side = match(photo, landmarks, rows=near)
    assert len(on_side) > 0.5 * len(photo)
    assert torch.isin(on_side.landmark, near).all()


def test_only_the_nearer_of_two_keypoints_is_matched_with_a_landmark():
    points, descriptors = sphere(50), unit(50)
    landmarks = landmarks_of(points, descriptors)
    one = landmarks.descriptors[:1].float()
    described = torch.cat([noisy(one, 0.3), noisy(one, 0.6), noisy(one, 0.6)])
    # The third is where the first is: SIFT describes a place once for each of its orientations.
    photo = Keypoints(torch.tensor([[50.0, 50.0], [300.0, 50.0], [51.0, 50.0]]), described, torch.ones(3))
    assert match(photo, landmarks).photo.tolist() == [0, 2]


def test_nothing_is_matched_with_nothing():
    landmarks = landmarks_of(sphere(20), unit(20))
    nobody = Keypoints(torch.zeros(0, 2), torch.zeros(0, 64), torch.zeros(0))
    matches = match(nobody, landmarks)
    assert len(matches) == 0
    assert pnp_cameras(nobody, landmarks, matches, LENS) == ()


def test_descriptors_of_another_length_are_refused():
    photo = Keypoints(torch.rand(5, 2), unit(5, 128), torch.ones(5))
    with pytest.raises(
        UsageError, match="128 numbers cannot be matched with landmarks of 64; extract them with test"
    ):
        match(photo, landmarks_of(sphere(20), unit(20)))


@pytest.fixture(params=["poselib", "pycolmap"])
def solver(request, monkeypatch):
    """Only the named library there."""
    pytest.importorskip(request.param)
    if request.param == "pycolmap":
        monkeypatch.setitem(sys.modules, "poselib", None)
    return request.param


def test_the_camera_of_known_points_is_found_among_wrong_matches(solver):
    points, descriptors = sphere(300), unit(300)
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors)
    # A third of the keypoints lie elsewhere than what they show.
    wrong = torch.arange(0, len(photo), 3)
    positions = photo.positions.clone()
    positions[wrong] = 100 + 200 * torch.rand(len(wrong), 2)
    photo = replace(photo, positions=positions)
    found = pnp_cameras(photo, landmarks, match(photo, landmarks), LENS)
    assert len(found) == 1  # other sides give the same camera or none
    assert turn_deg(found[0].camera, CAMERA) < 0.3
    assert (found[0].camera.centre - CAMERA.centre).norm() < 0.02
    right = len(photo) - len(wrong)
    assert 0.8 * right < found[0].inliers <= right + 3
    assert found[0].camera.fl_x == LENS.fl_x
    again = pnp_cameras(photo, landmarks, match(photo, landmarks), LENS)
    assert torch.equal(again[0].camera.world_to_cam, found[0].camera.world_to_cam)


def test_a_part_that_looks_the_same_from_behind_gives_both_cameras():
    half_turn = torch.tensor([-1.0, -1.0, 1.0])  # about z
    points, descriptors = sphere(400), unit(400)
    points[200:] = points[:200] * half_turn
    descriptors[200:] = descriptors[:200]
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors)
    found = pnp_cameras(photo, landmarks, match(photo, landmarks, ratio=1.0), LENS)
    behind = CAMERA.world_to_cam @ torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    for truth in (CAMERA, CAMERA.moved(behind)):
        assert min(turn_deg(candidate.camera, truth) for candidate in found) < 0.5
    assert [c.inliers for c in found] == sorted((c.inliers for c in found), reverse=True)


def test_matches_that_agree_on_no_camera_give_none():
    points, descriptors = sphere(300), unit(300)
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors)
    scattered = replace(photo, positions=100 + 200 * torch.rand(len(photo), 2))
    matches = match(scattered, landmarks)
    assert len(matches) > 5 * LEAST_INLIERS
    assert pnp_cameras(scattered, landmarks, matches, LENS) == ()


def test_keypoints_at_one_place_count_once():
    towards = torch.nn.functional.normalize(CAMERA.centre, dim=0)
    points = 0.8 * torch.nn.functional.normalize(
        towards + 0.6 * unit(14, 3), dim=1
    )  # all on the camera's side
    descriptors = unit(14)
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors)
    assert len(photo) == 14
    found = pnp_cameras(photo, landmarks, match(photo, landmarks), LENS)
    assert found
    assert found[0].inliers == found[0].matches == 14
    few = photo.select(torch.arange(8).repeat(3))
    assert len(match(few, landmarks)) >= LEAST_INLIERS
    assert pnp_cameras(few, landmarks, match(few, landmarks), LENS) == ()


def test_at_most_the_wanted_number_of_sides_is_tried(monkeypatch):
    import pose.matching

    tried = []
    truth = PnpCamera(CAMERA, 99, 99)

    def solve(at, points, camera, seed):
        tried.append(seed)
        world_to_cam = look_at(3 * DIRECTIONS[len(tried)], torch.zeros(3), UP)
        return world_to_cam, torch.ones(len(at), dtype=torch.bool)

    monkeypatch.setattr(pose.matching, "pnp_solver", lambda: solve)
    points, descriptors = sphere(400), unit(400)
    points[200:], descriptors[200:] = points[:200] * torch.tensor([-1.0, -1.0, 1.0]), descriptors[:200]
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(truth.camera, points, descriptors)
    matches = match(photo, landmarks, ratio=1.0)
    assert len(pnp_cameras(photo, landmarks, matches, LENS, most=1, seed=7)) == 1
    assert tried == [7]
    assert len(pnp_cameras(photo, landmarks, matches, LENS, most=2)) == 2


def test_without_a_solver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    points, descriptors = sphere(30), unit(30)
    landmarks = landmarks_of(points, descriptors)
    photo = photo_of(CAMERA, points, descriptors)
    with pytest.raises(MissingPartError, match=r"pip install 'splatad\[photos\]'"):
        pnp_cameras(photo, landmarks, match(photo, landmarks), LENS)


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """LightGlue of random weights, under the names of the published file; no score is too low."""
    kornia_feature = pytest.importorskip("kornia.feature")
    torch.manual_seed(0)
    tensors = kornia_feature.LightGlue(features=None, input_dim=128).state_dict()
    del tensors["confidence_thresholds"]
    published = {}
    for name, value in tensors.items():
        for kind in ("self_attn", "cross_attn"):
            if f".{kind}." in name:
                layer = name.split(".")[1]
                name = name.replace(f"transformers.{layer}.{kind}", f"{kind}.{layer}")
        published[name] = value.clone()
    assert any(name.startswith("cross_attn.8.") for name in published)
    save_file(published, tmp_path / "glue.safetensors")
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    entry = WeightsFile("disk_lightglue", "glue.safetensors", "Apache-2.0", None, None, "a test")
    monkeypatch.setitem(REGISTRY, "disk_lightglue", entry)
    return LightGlue("disk", least_score=0.0)


def test_lightglue_pairs_a_render_with_itself_in_any_order(glue):
    landmarks = replace(landmarks_of(sphere(120), unit(120, 128)), extractor="disk")
    rows = torch.nonzero(landmarks.view == 1)[:, 0]
    shuffled = rows[torch.randperm(len(rows))]
    at = LENS.moved(RENDERS[1]).project(landmarks.points[shuffled])[:, :2]
    photo = Keypoints(at, landmarks.descriptors[shuffled].float(), torch.ones(len(at)))
    matches = glue.match(photo, LENS, landmarks, 1)
    assert len(matches) > 0.9 * len(rows)
    assert torch.equal(matches.landmark, shuffled[matches.photo])
    # Places that fit are what makes a camera of them.
    found = pnp_cameras(photo, landmarks, match(photo, landmarks, ratio=1.0), LENS, most=1, learned=glue)
    assert turn_deg(found[0].camera, LENS.moved(RENDERS[1])) < 0.1


def test_lightglue_is_refused_for_features_it_was_not_trained_on(glue):
    with pytest.raises(UsageError, match="the landmarks are of test; build them with disk"):
        glue.match(photo_of(CAMERA, sphere(9), unit(9)), LENS, landmarks_of(sphere(9), unit(9)), 0)
    with pytest.raises(UsageError, match="no weights are registered for sift"):
        LightGlue("sift")
