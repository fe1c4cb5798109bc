from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from detect.cmt.checkpoint import load_network, save_network
from detect.cmt.encoded import load_encoded, save_encoded
from detect.cmt.model import CMT, ModelConfig
from detect.cmt.predict import Predictor, Thresholds, _box_on_photo, _on_photo, frame_photo
from detect.cmt.reference import (
    MeshViewer,
    PartFrame,
    ReferenceViews,
    cells_of,
    check_views,
    part_frame,
    registration_error,
    views_of_pack,
    views_of_splats,
)
from prepare.camera import Camera, look_at
from prepare.errors import InputError
from prepare.generate.chairs import ChairSettings, camera_at, view_cameras
from prepare.shape_pairs import ShapePairs
from recon.gaussians import Gaussians

TINY = ModelConfig(
    px=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), width=16, match_hidden=(16,), match_width=16, inner=32, blocks=1,
    heads=2, head_width=16, feed_forward=32, head_hidden=16, k=4, position_width=8,
)  # fmt: skip


def _network(config: ModelConfig = TINY) -> CMT:
    torch.manual_seed(0)
    return CMT(config)


def _photo(folder: Path, number: int) -> torch.Tensor:
    return torch.from_numpy(np.array(ShapePairs.open(folder)["queries"][number])).float() / 255


def test_cached_is_uncached_and_companions_do_not_matter(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    predictor = Predictor(_network())
    reference = predictor.encode(views_of_pack(pack, 0))
    photos = [frame_photo(_photo(pack_folder, number), None, 64) for number in (0, 1)]
    together = predictor.predict(photos, reference)
    again = predictor.predict(photos[1:], predictor.encode(views_of_pack(pack, 0)))
    assert together[1].score == again[0].score
    assert together[1].view_scores == again[0].view_scores
    # In one pass with the views, nothing kept.
    views = views_of_pack(pack, 0)
    with torch.no_grad():
        out = predictor.network(
            photos[1].picture[None], photos[1].share[None], views.normalised(), views.share, views.xyz,
            torch.arange(4)[None],
        )  # fmt: skip
    assert together[1].score == pytest.approx(float(out.logit.sigmoid()), abs=1e-6)


def test_a_prediction_holds_what_it_says(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    predictor = Predictor(_network(), Thresholds(plain=0.0, aided=1.0))
    reference = predictor.encode(views_of_pack(pack, 0))
    wide = torch.ones(64, 96, 3)
    wide[:, 16:80] = _photo(pack_folder, 0)
    said = predictor.predict([frame_photo(wide, None, 64)], reference)[0]
    assert said.label == 1
    assert said.box is not None
    x, y, w, h = said.box
    assert 0 <= x <= x + w <= 96
    assert 0 <= y <= y + h <= 64
    assert said.patch_map is not None
    assert said.patch_map.shape == (64, 96)
    assert said.best_view == int(np.argmin(said.view_scores))
    for match in said.matches:
        assert len(match.view) == len(match.matched) == len(match.score) == 4
        assert list(match.score) == sorted(match.score, reverse=True)
        share = reference.views.share.view(-1, 8, 8)
        assert all(share[v, r, c] > 0 for v, (r, c) in zip(match.view, match.matched, strict=True))


def test_an_aiding_view_is_used(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    predictor = Predictor(_network())
    views = views_of_pack(pack, 0)
    reference = predictor.encode(views)
    grey = torch.from_numpy(np.array(pack["aided"][[0]]))[..., None].expand(-1, -1, -1, 3)
    aiding = replace(
        views_of_pack(pack, 0, [0]),
        pictures=grey,
        share=torch.from_numpy(np.array(pack["aided_alpha"][[0]])).flatten(1).float() / 255,
        xyz=torch.from_numpy(np.array(pack["aided_xyz"][[0]])).flatten(1, 2),
        world_to_cam=torch.from_numpy(np.array(pack["aided_camera"][[0]])),
    )
    photo = frame_photo(_photo(pack_folder, 0), None, 64)
    predictor.thresholds = Thresholds(plain=1.0, aided=0.0)
    plain, aided = predictor.predict([photo, photo], reference, [None, aiding])
    assert plain.score != aided.score
    # Each way of asking has its own threshold.
    assert (plain.label, plain.threshold, aided.label, aided.threshold) == (0, 1.0, 1, 0.0)
    assert len(aided.view_scores) == 4
    without = Predictor(_network(replace(TINY, aided=False)))
    with pytest.raises(InputError, match="without aiding views"):
        without.predict([photo], without.encode(views), [aiding])


def test_framing_keeps_proportions_and_puts_white_round() -> None:
    rgb = torch.ones(40, 80, 3)
    rgb[10:30, 20:60] = 0.2
    photo = frame_photo(rgb, None, 64)
    dark = photo.picture[0] < 0
    rows, columns = dark.any(dim=1).nonzero()[:, 0], dark.any(dim=0).nonzero()[:, 0]
    assert (int(rows[0]), int(rows[-1])) == (24, 39)  # 20 px of 80 are 16 of 64, in the middle
    assert (int(columns[0]), int(columns[-1])) == (16, 47)
    # Resampling softens its rim by less than a pixel.
    assert float(photo.share.view(8, 8)[3:5, 2:6].min()) > 0.95
    assert float(photo.share.sum()) == pytest.approx(8, abs=0.1)
    with pytest.raises(InputError, match="empty mask"):
        frame_photo(torch.ones(40, 80, 3), None, 64)


def test_a_white_part_is_seen_where_its_mask_is_given() -> None:
    alpha = torch.zeros(64, 64)
    alpha[16:32, 16:32] = 1
    assert float(frame_photo(torch.ones(64, 64, 3), alpha, 64).share.sum()) == 4


def test_points_off_by_half_a_cell_are_refused(pack_folder: Path) -> None:
    """The released records count cells by rounding: every point lies half a cell up and left."""
    pack = ShapePairs.open(pack_folder)
    views = views_of_pack(pack, 0)
    assert registration_error(views) < 2
    moved = views.xyz.view(4, 8, 8, 3).roll((1, 1), (1, 2)).reshape(4, 64, 3)
    with pytest.raises(InputError, match="from the middle of their cells"):
        check_views(replace(views, xyz=moved), "here")


def test_views_that_cannot_serve_are_named(pack_folder: Path) -> None:
    views = views_of_pack(ShapePairs.open(pack_folder), 0)
    with pytest.raises(InputError, match="here: view 0 shows nothing"):
        check_views(replace(views, share=torch.zeros_like(views.share)), "here")
    with pytest.raises(InputError, match="here: view 0 has no surface points"):
        check_views(replace(views, xyz=torch.full_like(views.xyz, torch.nan)), "here")
    with pytest.raises(InputError, match="here: no views"):
        check_views(ReferenceViews(*(getattr(views, field.name)[:0] for field in fields(views))), "here")


def test_cells_hold_the_point_at_their_middle() -> None:
    camera = Camera(torch.eye(4, dtype=torch.float64), 100.0, 100.0, 16.0, 16.0, 32, 32)
    alpha, depth = (
        torch.zeros(32, 32, dtype=torch.float64),
        torch.full((32, 32), torch.inf, dtype=torch.float64),
    )
    alpha[0:8, 0:8], depth[0:8, 0:8] = 1, 2.0  # a whole cell
    alpha[8, 15], depth[8, 15] = 1, 4.0  # one pixel of another
    share, xyz = cells_of(alpha, depth, camera)
    assert share.view(4, 4)[0, 0] == 1
    assert share.view(4, 4)[1, 1] == 1 / 64
    near = xyz.view(4, 4, 3)[0, 0]  # pixel 3 or 4: within 0.5 px of the middle at 4.0
    assert (near[:2] * 100 / 2.0 + 16 - 4).abs().max() <= 0.5
    assert near[2] == 2
    torch.testing.assert_close(
        xyz.view(4, 4, 3)[1, 1], torch.tensor([(15.5 - 16) / 25, (8.5 - 16) / 25, 4.0])
    )
    assert int(xyz.isfinite().all(dim=1).sum()) == 2


def test_the_soft_skirt_of_a_splat_is_no_part() -> None:
    """Only where it covers more than half: the share that photos have. All of it would be 1.46 times as much."""
    scale, opacity = 0.3, 0.98
    one = Gaussians(
        means=torch.zeros(1, 3),
        log_scales=torch.full((1, 3), math.log(scale)),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        logit_opacities=torch.logit(torch.tensor([opacity])),
        sh=torch.zeros(1, 1, 3),
    )
    camera = camera_at(64, 30.0, 20.0, 3.0)
    frame = PartFrame(torch.zeros(3, dtype=torch.float64), 1.0, torch.eye(3, dtype=torch.float64))
    views = views_of_splats(one, [camera], frame)
    radius_px = camera.fl_x / 3.0 * scale * math.sqrt(2 * math.log(opacity / 0.5))
    assert float(views.share.sum()) * 64 == pytest.approx(math.pi * radius_px**2, rel=0.04)


def test_views_of_splats_lie_on_the_splats() -> None:
    """A ball of splats of radius 5 about (10, 0, 0): in the network's world a unit ball's surface."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=1)
    centre = torch.tensor([10.0, 0.0, 0.0])
    ball = Gaussians(
        means=directions * 5 + centre,
        log_scales=torch.full((4000, 3), -1.6),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(4000, 4).contiguous(),
        logit_opacities=torch.full((4000,), 4.0),
        sh=torch.zeros(4000, 1, 3),
    )
    cameras = [camera_at(64, azimuth, 20.0, 3.0) for azimuth in (0.0, 120.0, 240.0)]
    frame = PartFrame(centre.double(), 5 / 0.6, torch.eye(3, dtype=torch.float64))
    views = views_of_splats(ball, cameras, frame)
    radii = views.xyz[views.xyz.isfinite().all(dim=-1)].norm(dim=-1)
    assert float((radii - 0.6).abs().median()) < 0.07  # the splats' own thickness: three deviations are 0.07
    assert registration_error(views) < 1
    # White round it, grey on it, lightest where it faces the camera.
    assert views.pictures[0, 0, 0].tolist() == [255, 255, 255]
    assert views.pictures[0, 32, 32, 0] > views.pictures[0, 32, 18, 0]
    coloured = views_of_splats(ball, cameras, frame, "colour")
    assert abs(int(coloured.pictures[0, 32, 32, 0]) - 128) < 6  # no harmonics: mid-grey
    assert torch.equal(coloured.share, views.share)


def test_a_part_lies_in_the_networks_world_and_its_cameras_with_it() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 4.0, 6.0]) + 7
    frame = part_frame(points, "z")
    inside = (points - frame.centre) @ frame.turn.T / frame.radius
    assert float(inside.norm(dim=1).max()) == pytest.approx(0.98)
    # What was up (z) is y now, and nothing is mirrored.
    assert float(torch.corrcoef(torch.stack([inside[:, 1], points[:, 2]]))[0, 1]) == pytest.approx(1)
    assert float(torch.linalg.det(frame.turn)) == pytest.approx(1)
    # A camera brought into the network's world shows the same points at the same pixels.
    eye = torch.tensor([20.0, 3.0, 11.0], dtype=torch.float64)
    pose = look_at(eye, frame.centre, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    camera = Camera(pose, 100.0, 90.0, 31.0, 33.0, 64, 64)
    torch.testing.assert_close(
        frame.into_network(camera).project(inside)[:, :2], camera.project(points)[:, :2]
    )
    with pytest.raises(InputError, match="all of it is one point"):
        part_frame(points[:1].expand(9, 3), "y")


def test_a_meshs_views_are_those_that_the_network_learns_from() -> None:
    """Two renderers: the generator's ray caster on a chair of boxes, and the mesh of the same boxes."""
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    from prepare.generate.chair_parts import Chair, Component, Solid
    from prepare.generate.chair_render import grey_view
    from prepare.generate.chairs import ChairSettings, cell_points, view_cameras
    from prepare.generate.shapes import Box
    from prepare.mesh import mesh_of

    boxes = [((0.0, 0.1, 0.0), (0.5, 0.1, 0.4)), ((0.0, 0.5, -0.35), (0.5, 0.3, 0.05))]
    corners = []
    for centre, half in boxes:
        grid = np.array(centre) + np.array(half) * np.array(
            [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
        )
        for a, b, c, d in (
            (0, 1, 3, 2),
            (4, 6, 7, 5),
            (0, 4, 5, 1),
            (2, 3, 7, 6),
            (0, 2, 6, 4),
            (1, 5, 7, 3),
        ):
            corners += [grid[[a, b, c]], grid[[a, c, d]]]
    mesh = mesh_of(np.array(corners))
    frame = part_frame(torch.from_numpy(mesh.vertices), "y")
    solids = tuple(
        Solid(
            Box(tuple(np.array(half) / frame.radius), 1e-4),
            (np.array(centre) - frame.centre.numpy()) / frame.radius,
            np.eye(3),
        )
        for centre, half in boxes
    )
    chair = Chair("boxes", (Component("SeatSurface", "seat", solids, "seat"),))
    cameras = [camera for _, _, camera in view_cameras(ChairSettings(px=64, views=8))][::3]
    views = MeshViewer(mesh, frame).views(cameras)
    for number, camera in enumerate(cameras):
        theirs = grey_view(chair, camera, 3)
        gap = (views.pictures[number, ..., 0].double() / 255 - torch.from_numpy(theirs.grey)).abs()
        assert float(gap.mean()) < 0.004
        assert float((gap > 0.02).double().mean()) < 0.03  # a rim of some pixels
        points = torch.from_numpy(cell_points(chair.solids(), camera, theirs.hits, 3)).flatten(0, 1)
        both = points.isfinite().all(dim=1) & views.xyz[number].isfinite().all(dim=1)
        assert int(both.sum()) > 10
        # Ours are at a pixel beside the cell's middle: a pixel is 0.034 wide there, a cell 0.27.
        assert float((points - views.xyz[number]).norm(dim=1)[both].median()) < 0.06


def test_a_small_part_is_brought_near_and_boxes_and_maps_find_back() -> None:
    rgb = torch.ones(100, 200, 3)
    rgb[20:40, 150:180] = 0.3
    photo = frame_photo(rgb, None, 64, near=True)
    assert photo.side == 40  # 30 px of it fill three quarters
    dark = (photo.picture[0] < 0.5).nonzero()
    assert abs(int(dark[:, 1].max() - dark[:, 1].min()) + 1 - 48) <= 1
    # The frame's middle is the part's: (165, 30) in the photo.
    x, y, w, h = _box_on_photo((0.5, 0.5, 0.25, 0.5), photo, 64)
    assert (x + w / 2, y + h / 2, w, h) == pytest.approx((165, 30, 10, 20))
    cells = torch.zeros(8, 8)
    cells[3:5, 3:5] = 1
    whole = _on_photo(cells, photo)
    assert whole.shape == (100, 200)
    rows, columns = (whole == whole.max()).nonzero().double().mean(dim=0).tolist()
    assert (columns + 0.5, rows + 0.5) == pytest.approx((165, 30), abs=0.6)
    assert frame_photo(rgb, None, 64).side == 200


def test_kept_features_answer_as_new_ones(pack_folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(_network())
    reference = predictor.encode(views_of_pack(ShapePairs.open(pack_folder), 0))
    path = tmp_path / "kept.safetensors"
    assert load_encoded(path, "a") is None
    save_encoded(path, reference, "a")
    kept = load_encoded(path, "a")
    assert kept is not None
    photo = frame_photo(_photo(pack_folder, 0), None, 64)
    assert predictor.predict([photo], kept)[0].score == predictor.predict([photo], reference)[0].score
    assert load_encoded(path, "another part's") is None
    path.write_bytes(path.read_bytes()[:100])
    assert load_encoded(path, "a") is None


def test_no_view_is_there_twice() -> None:
    views = view_cameras(ChairSettings(views=8, px=64))
    centres = torch.stack([camera.centre for _, _, camera in views])
    assert torch.cdist(centres, centres).fill_diagonal_(9).min() > 1
    assert centres[0, 1] == pytest.approx(3 * np.sin(np.radians(views[0][1])))


def test_checkpoints_come_back_and_others_are_refused(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "cmt.safetensors"
    save_network(path, network, {"thresholds": {"plain": 0.3, "aided": 0.6}})
    again, about = load_network(path, TINY)
    assert about == {"thresholds": {"plain": 0.3, "aided": 0.6}}
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in network.state_dict().items())
    assert Predictor.from_file(path).thresholds == Thresholds(0.3, 0.6)
    save_network(tmp_path / "bad.safetensors", network, {"thresholds": {"plain": 3}})
    with pytest.raises(InputError, match="threshold 3 is no probability"):
        Predictor.from_file(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"another network's weights \(k 4, expected 9\)"):
        load_network(path, replace(TINY, k=9))
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_network(tmp_path / "none.safetensors")
    tensors = load_file(path)
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="not weights of this detector"):
        load_network(tmp_path / "bare.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file({**tensors, "spy": torch.zeros(1)}, tmp_path / "more.safetensors", metadata=header)
    with pytest.raises(InputError, match="foreign tensor spy"):
        load_network(tmp_path / "more.safetensors")
    tensors["decoder.token"] = torch.zeros(1, 1, 3)
    save_file(tensors, tmp_path / "odd.safetensors", metadata=header)
    with pytest.raises(InputError, match=r"decoder.token is \(1, 1, 3\)"):
        load_network(tmp_path / "odd.safetensors")
    save_network(tmp_path / "half.safetensors", network, {}, half=True)
    half, _ = load_network(tmp_path / "half.safetensors")
    assert half.decoder.token.dtype == torch.float32
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * path.stat().st_size
