from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.cmt.batches import Batch, Drawing, Group, load_batch
from detect.cmt.correspondence import nearest_direction, pack, position_prior, view_disagreement
from detect.cmt.encoder import Encoder, Smoothing
from detect.cmt.model import (
    CMT,
    EMPTY_LOGIT,
    ModelConfig,
    Output,
    ablation,
    preset,
    white_share,
    without_reference,
)
from detect.cmt.pose_aid import match_in_place
from detect.cmt.positions import SurfacePositions, cell_places, fourier
from prepare.errors import InputError, UsageError
from prepare.shape_pairs import ShapePairs

TINY = ModelConfig(
    px=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), width=16, match_hidden=(16,), match_width=16, inner=32, blocks=2,
    heads=2, head_width=16, feed_forward=32, head_hidden=16, k=4, position_width=8,
)  # fmt: skip
PAPER_LIKE = replace(
    TINY, norm="batch", foreground="white", foreground_only=False, missing_as_point=True, picture_bands=0, patches=False,
    aided=False, explained=False, position_base=1.0, position_bands=10,
)  # fmt: skip


def _network(config: ModelConfig, seed: int = 0) -> CMT:
    torch.manual_seed(seed)
    return CMT(config).eval()


def _batch(
    folder: Path,
    aided: bool = True,
    views: tuple[int, ...] = (0, 1, 2, 3),
    photos: tuple[int, ...] = (0, 1, 2),
) -> Batch:
    return load_batch(ShapePairs.open(folder), [Group(0, photos, views, 0)], Drawing(aided=aided), 0)


def _run(network: CMT, batch: Batch) -> Output:
    with torch.no_grad():
        return network(
            batch.photos,
            batch.photo_share,
            batch.views,
            batch.view_share,
            batch.view_xyz,
            batch.view_of,
            batch.aided,
        )


def _count(module: torch.nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def test_paper_preset_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        network = CMT(preset("paper"))
    assert _count(network.encoder) == 12_777_408
    assert _count(network.matching) == 2_493_440
    assert _count(network.decoder) == 15_505_541
    assert _count(network.decoder.blocks[0]) == 4_989_440


def test_small_preset_stays_below_four_megabytes_of_half_precision_and_two_million_weights() -> None:
    with torch.device("meta"):
        network = CMT(preset("small"))
    assert 1_000_000 < _count(network) < 2_000_000


def test_encoder_takes_any_multiple_of_32_and_refuses_others() -> None:
    encoder = Encoder((8, 8, 16, 16), (1, 1, 1, 1), 16, "group", Smoothing(3, 1, 2), True)
    assert encoder(torch.zeros(1, 3, 96, 160)).shape == (1, 16, 12, 20)
    with pytest.raises(ValueError, match="multiples of 32"):
        encoder(torch.zeros(1, 3, 100, 96))


@pytest.mark.parametrize("config", [TINY, PAPER_LIKE, replace(TINY, k=0)])
def test_permuting_the_views_leaves_the_answer_unchanged(config: ModelConfig, pack_folder: Path) -> None:
    network = _network(config)
    batch = _batch(pack_folder)
    order = torch.tensor([2, 0, 3, 1])
    one, other = _run(network, batch), _run(network, replace(batch, view_of=batch.view_of[:, order]))
    torch.testing.assert_close(one.logit, other.logit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.box, other.box, atol=1e-5, rtol=1e-5)
    assert one.disagreement is not None
    assert other.disagreement is not None
    torch.testing.assert_close(one.disagreement[:, order], other.disagreement)


def test_the_three_forms_of_attention_give_the_same_network(pack_folder: Path) -> None:
    network, batch = _network(TINY), _batch(pack_folder)
    number = len(batch.views)
    with torch.no_grad():
        cells = network.encode(
            torch.cat([batch.views, batch.photos]), torch.cat([batch.view_share, batch.photo_share])
        )
        views = replace(cells[:number], xyz=batch.view_xyz)
        outs = [
            network.compare(cells[number:], views, batch.view_of, batch.aided, form)
            for form in ("dense", "gathered", "absorbed")
        ]
    for out in outs[1:]:
        torch.testing.assert_close(out.logit, outs[0].logit, atol=1e-5, rtol=1e-5)
        assert out.patch is not None
        assert outs[0].patch is not None
        torch.testing.assert_close(out.patch, outs[0].patch, atol=1e-5, rtol=1e-5)


def test_background_cells_have_no_say(pack_folder: Path) -> None:
    network, batch = _network(TINY), _batch(pack_folder)
    with torch.no_grad():
        views = network.encode(batch.views, batch.view_share, batch.view_xyz)
        photos = network.encode(batch.photos, batch.photo_share)
        one = network.compare(photos, views, batch.view_of)
        empty = (views.share == 0)[..., None]
        other = network.compare(
            photos, replace(views, features=torch.where(empty, 100.0, views.features)), batch.view_of
        )
    torch.testing.assert_close(one.logit, other.logit)


def test_photos_do_not_depend_on_their_companions(pack_folder: Path) -> None:
    network = _network(TINY)
    together = _run(network, _batch(pack_folder, photos=(0, 1, 2)))
    alone = _run(network, _batch(pack_folder, photos=(2,)))
    torch.testing.assert_close(together.logit[2:], alone.logit, atol=1e-5, rtol=1e-5)


def test_ablations_switch_what_the_paper_switches() -> None:
    found = {name: ablation(TINY, name) for name in ("A", "B", "C", "D", "CMT")}  # type: ignore[arg-type]
    assert {n: (c.k > 0, a, c.positions) for n, (c, a) in found.items()} == {
        "A": (False, False, False),
        "B": (True, False, False),
        "C": (False, True, False),
        "D": (True, True, False),
        "CMT": (True, True, True),
    }


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="reference off"):
        replace(TINY, reference=False)
    with pytest.raises(UsageError, match="multiple of 32"):
        replace(TINY, px=100)


def test_without_reference_the_views_have_no_say(pack_folder: Path) -> None:
    network, batch = _network(without_reference(TINY)), _batch(pack_folder)
    with torch.no_grad():
        out = network.compare(network.encode(batch.photos, batch.photo_share), None, None)
    assert out.matches is None
    assert out.logit.shape == (3,)
    assert out.patch is not None


def test_the_aiding_view_counts_and_only_where_it_is_given(pack_folder: Path) -> None:
    network, batch = _network(TINY), _batch(pack_folder)
    given = _run(network, batch)
    withheld = _run(network, replace(batch, aided=torch.tensor([-1, 1 + 4, -1])))
    none = _run(network, _batch(pack_folder, aided=False))
    assert float((given.logit[0] - none.logit[0]).abs()) > 1e-4
    torch.testing.assert_close(withheld.logit[[0, 2]], none.logit[[0, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(withheld.logit[1], given.logit[1], atol=1e-5, rtol=1e-5)


def test_bad_references_are_named(pack_folder: Path) -> None:
    network, batch = _network(TINY), _batch(pack_folder, aided=False)
    with torch.no_grad():
        views, photos = (
            network.encode(batch.views, batch.view_share),
            network.encode(batch.photos, batch.photo_share),
        )
    with pytest.raises(InputError, match="no surface points"):
        network.compare(photos, views, batch.view_of)
    views = replace(views, xyz=batch.view_xyz)
    with pytest.raises(InputError, match="no views"):
        network.compare(photos, views, batch.view_of[:, :0])
    with pytest.raises(InputError, match="empty mask"):
        network.compare(photos, replace(views, share=torch.zeros_like(views.share)), batch.view_of)
    with pytest.raises(InputError, match="64 x 64"):
        network.encode(torch.zeros(1, 3, 96, 96), torch.zeros(1, 144))


def test_one_view_is_enough(pack_folder: Path) -> None:
    out = _run(_network(TINY), _batch(pack_folder, views=(1,)))
    assert bool(out.logit.isfinite().all())
    assert out.disagreement is not None
    assert out.disagreement.shape == (3, 1)


def test_only_cells_of_photo_and_aiding_view_have_logits(pack_folder: Path) -> None:
    batch = _batch(pack_folder)
    out = _run(_network(TINY), batch)
    assert out.patch is not None
    assert out.near is not None
    assert out.unexplained is not None
    shown = (batch.photo_share > 0) | (batch.view_share[batch.aided] > 0)
    assert bool((out.patch[shown] > EMPTY_LOGIT).all())
    assert out.near.tolist() == batch.aided.tolist()
    assert torch.equal(out.unexplained > EMPTY_LOGIT, batch.view_share[batch.aided] > 0)


def test_fourier_features_by_hand() -> None:
    got = fourier(torch.tensor([[0.5, -1.0]]), 2, 1.0)
    want = [
        0.5,
        -1,
        math.sin(0.5),
        math.sin(-1),
        math.cos(0.5),
        math.cos(-1),
        math.sin(1),
        math.sin(-2),
        math.cos(1),
        math.cos(-2),
    ]
    torch.testing.assert_close(got, torch.tensor([want]))
    assert fourier(torch.zeros(1, 3), 10, 1.0).shape == (1, 63)


def test_a_cell_without_a_point_is_not_the_corner_of_the_world() -> None:
    corner, nothing = torch.full((1, 3), -1.0), torch.full((1, 3), math.nan)
    ours, released = SurfacePositions(8, 4, 1.0, False), SurfacePositions(8, 4, 1.0, True)
    assert not torch.allclose(ours(corner), ours(nothing))
    torch.testing.assert_close(released(corner), released(nothing))


def test_cell_places_are_the_middles_row_by_row() -> None:
    places = cell_places(2, 4, torch.zeros(1))
    assert places.tolist() == [[x, y] for y in (-0.5, 0.5) for x in (-0.75, -0.25, 0.25, 0.75)]


def test_white_ground_is_background_and_a_dark_spot_is_widened() -> None:
    picture = torch.ones(1, 3, 64, 64)
    assert float(white_share(picture, 8).max()) == 0
    picture[..., 33:37, 33:37] = -1
    share = white_share(picture, 8)[0].view(8, 8)
    assert float(share[4, 4]) == 1
    assert float(share.sum()) == 1


def test_pack_keeps_order_and_marks_padding() -> None:
    kept = torch.tensor([[False, True, False, True], [False, False, True, False]])
    index, usable = pack(kept)
    assert index[usable].tolist() == [1, 3, 2]
    assert usable.tolist() == [[True, True], [True, False]]


def test_votes_prefer_the_view_with_parts_in_the_photos_places() -> None:
    # Four cells in a row of four columns; view 0 shows them where the photo does, view 1 mirrored.
    similarity = torch.zeros(1, 4, 8)
    for cell in range(4):
        similarity[0, cell, cell] = 1
        similarity[0, cell, 4 + 3 - cell] = 1
    cells = torch.arange(4)
    key_cell, key_view = torch.cat([cells, cells])[None], torch.tensor([[0] * 4 + [1] * 4])
    everything = torch.ones(1, 8, dtype=torch.bool)
    got = view_disagreement(similarity, cells[None], everything[:, :4], key_cell, key_view, everything, 3, 4)
    assert got[0].tolist() == [0.0, 2.0, math.inf]  # (3 + 1 + 1 + 3) / 4


def _on_ring(azimuth_deg: float) -> torch.Tensor:
    a = math.radians(azimuth_deg)
    turn = torch.tensor([[-math.sin(a), math.cos(a), 0], [0, 0, -1.0], [-math.cos(a), -math.sin(a), 0]])
    pose = torch.eye(4)
    pose[:3, :3], pose[2, 3] = turn, 3.0
    return pose


def test_nearest_view_goes_round_the_circle() -> None:
    views = torch.stack([_on_ring(a) for a in (0, 90, 180, 270)])[None]
    nearest, angles = nearest_direction(_on_ring(350.0)[None], views)
    assert int(nearest) == 0
    torch.testing.assert_close(angles[0], torch.tensor([10.0, 100.0, 170.0, 80.0]), atol=1e-3, rtol=0)


def test_position_prior_by_hand() -> None:
    expected = torch.tensor([[[0.0, 0, 0], [math.nan] * 3]])
    keys = torch.tensor([[[0.3, 0, 0.4], [math.nan] * 3]])
    assert position_prior(expected, keys, 0.5)[0].tolist() == [[pytest.approx(-0.5), 0.0], [0.0, 0.0]]


def test_matching_in_place_finds_a_shift_of_one_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    view = torch.nn.functional.normalize(torch.randn(1, 36, 32, generator=generator), dim=-1)
    photo = (
        view.view(1, 6, 6, 32).roll((1, -1), (1, 2)).reshape(1, 36, 32)
    )  # photo[r, c] = view[r - 1, c + 1]
    found = match_in_place(photo, view, view, 6)
    inner = found.offset.view(6, 6, 2)[1:5, 1:5]
    torch.testing.assert_close(inner, torch.tensor([-1.0, 1.0]).expand(4, 4, 2), atol=0.05, rtol=0)
    torch.testing.assert_close(found.similarity.view(6, 6)[1:5, 1:5], torch.ones(4, 4))


def test_batch_of_several_shapes_gives_each_photo_its_own_views(pack_folder: Path) -> None:
    made = ShapePairs.open(pack_folder)
    photos = [tuple(np.flatnonzero(made["query_shape"] == shape)[:2].tolist()) for shape in (0, 1)]
    groups = [Group(shape, photos[shape], (0, 2), shape) for shape in (0, 1)]
    batch = load_batch(made, groups, Drawing(aided=True), 0)
    network = _network(TINY)
    together = _run(network, batch)
    for shape in (0, 1):
        alone = _run(network, load_batch(made, [groups[shape]], Drawing(aided=True), 0))
        torch.testing.assert_close(
            together.logit[2 * shape : 2 * shape + 2], alone.logit, atol=1e-5, rtol=1e-5
        )
