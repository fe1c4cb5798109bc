from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from detect.cmt.checkpoint import load_network, save_network
from detect.cmt.model import CMT, ModelConfig
from detect.cmt.predict import Predictor, Thresholds, frame_photo
from detect.cmt.reference import (
    PartFrame,
    ReferenceViews,
    cells_of,
    check_views,
    load_views,
    registration_error,
    ring_cameras,
    save_views,
    views_of_pack,
    views_of_splats,
)
from prepare.camera import Camera
from prepare.errors import InputError
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


def test_views_of_splats_lie_on_the_splats(tmp_path: Path) -> None:
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
    cameras = ring_cameras(3, 64, up="y")
    frame = PartFrame(centre.double(), 5 / 0.6, torch.eye(3, dtype=torch.float64))
    views = views_of_splats(ball, cameras, frame)
    radii = views.xyz[views.xyz.isfinite().all(dim=-1)].norm(dim=-1)
    assert float((radii - 0.6).abs().median()) < 0.07  # the splats' own thickness: three deviations are 0.07
    assert registration_error(views) < 1
    # White round it, grey on it, lightest where it faces the camera.
    assert views.pictures[0, 0, 0].tolist() == [255, 255, 255]
    assert views.pictures[0, 32, 32, 0] > views.pictures[0, 32, 18, 0]
    save_views(tmp_path / "views.safetensors", views)
    kept = load_views(tmp_path / "views.safetensors")
    assert torch.equal(kept.pictures, views.pictures)
    coloured = views_of_splats(ball, cameras, frame, "colour")
    assert abs(int(coloured.pictures[0, 32, 32, 0]) - 128) < 6  # no harmonics: mid-grey
    assert torch.equal(coloured.share, views.share)


def test_ring_has_no_view_twice() -> None:
    cameras = ring_cameras(4, 64, (20.0, 50.0), up="y")
    centres = torch.stack([camera.centre for camera in cameras])
    assert torch.cdist(centres, centres).fill_diagonal_(9).min() > 1
    assert centres[0, 1] == pytest.approx(3 * np.sin(np.radians(20)))


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
