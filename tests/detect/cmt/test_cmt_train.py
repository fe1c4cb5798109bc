from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detect.cmt.alignment import (
    Pairs,
    alignment_loss,
    alignment_loss_of_points,
    average_into,
    farthest_points,
    pseudo_pairs,
)
from detect.cmt.batches import Drawing, Group, GroupStream, load_batch
from detect.cmt.checkpoint import load_network
from detect.cmt.evaluate import EvaluateConfig, evaluate
from detect.cmt.losses import box_loss, class_loss, generalised_iou, iou, patch_loss
from detect.cmt.model import CMT, ModelConfig, without_reference
from detect.cmt.train import NETWORK, STATE, Progress, TrainConfig, paper_config, steps_done, train
from prepare.errors import InputError, UsageError
from prepare.shape_pairs import ShapePairs

TINY = ModelConfig(
    px=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), width=16, match_hidden=(16,), match_width=16, inner=32, blocks=1,
    heads=2, head_width=16, feed_forward=32, head_hidden=16, k=4, position_width=8,
)  # fmt: skip
FAST = TrainConfig(model=TINY, steps=4, groups=2, photos=2, views=2, warmup=1, check_every=2)


def test_iou_and_generalised_iou_by_hand() -> None:
    a = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
    b = torch.tensor([[0.5, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
    torch.testing.assert_close(iou(a, b), torch.tensor([1 / 3, 0.0]))
    torch.testing.assert_close(generalised_iou(a, b), torch.tensor([1 / 3, -0.5]))


def test_losses_by_hand() -> None:
    logit, label = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(class_loss(logit, label), torch.tensor(0.6931472 + 2.126928))
    box = torch.tensor([[0.5, 0.25, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1]])
    truth = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    # 5 x 0.25 + 2 x (1 - 1/3); the photo without a box costs nothing.
    torch.testing.assert_close(box_loss(box, truth, torch.tensor([True, False])), torch.tensor(1.25 + 4 / 3))


def test_patch_loss_counts_only_what_counts_and_vanishes_when_right() -> None:
    change = torch.tensor([[1.0, 0.0, 1.0]])
    counts = torch.tensor([[True, True, False]])
    right = patch_loss(torch.tensor([[20.0, -20.0, -20.0]]), change, counts)
    wrong = patch_loss(torch.tensor([[-20.0, 20.0, -20.0]]), change, counts)
    assert float(right) < 1e-3
    assert float(wrong) > 10
    assert float(patch_loss(torch.tensor([[-20.0, 20.0, 0.0]]), change, counts, torch.tensor([False]))) == 0


def test_alignment_is_infonce_over_the_key_pictures_part() -> None:
    matching = torch.nn.functional.normalize(
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    share = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])  # the last cell of the key shows no part
    xyz = torch.tensor([[[0.0, 0, 0]] * 4, [[0.0, 0, 0], [0.05, 0, 0], [1, 0, 0], [2, 0, 0]]])
    pairs = Pairs(
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([[2, 0]]),
        torch.tensor([[0, 1]]),
        torch.tensor([[True, False]]),
    )
    got = alignment_loss(matching, matching, share, xyz, pairs, 0.1, 0.1)
    logits = matching[0, 2] @ matching[1].T / 0.1
    # Cell 1 lies 0.05 from the true one: no negative.
    torch.testing.assert_close(got, torch.logsumexp(logits[[0, 2]], dim=0) - logits[0])


def test_alignment_of_points_takes_the_other_points_as_negatives() -> None:
    matching = torch.nn.functional.normalize(
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    pairs = Pairs(
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([[2, 0]]),
        torch.tensor([[0, 1]]),
        torch.tensor([[True, True]]),
    )
    logits = matching[0, [2, 0]] @ matching[1, [0, 1]].T / 0.1
    want = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(alignment_loss_of_points(matching, matching, pairs, 0.1), want)


def test_pseudo_labels_are_mutual_and_confident() -> None:
    axes = torch.eye(4)
    photo = torch.stack([axes[0], axes[1], axes[2], 0.5 * axes[3]])[None]
    view = torch.stack([axes[1], 0.9 * axes[1], axes[3], axes[0]])[None]
    ones = torch.ones(1, 4)
    here, there, trusted = pseudo_pairs(photo, ones, view, ones, 4, confidence=0.7)
    found = {(int(h), int(t)) for h, t, ok in zip(here[0], there[0], trusted[0], strict=True) if ok}
    # The second cell of the view is not its match's own best; the third is too unlike.
    assert found == {(1, 0), (0, 3)}


def test_averaging_takes_buffers_too() -> None:
    network, average = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    network.running_mean.fill_(1.0)
    network.weight.data.fill_(3.0)
    average_into(average, network, 0.75)
    assert float(average.running_mean) == 0.25
    assert float(average.weight) == 1.5


def test_farthest_points_are_spread() -> None:
    line = torch.stack([torch.arange(11.0), torch.zeros(11)], dim=1)
    assert farthest_points(line, 3).tolist() == [0, 10, 5]


def test_an_epoch_brings_every_photo_once_and_twins_together(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    stream = GroupStream(pack, "train", 2, 2, seed=3)
    groups = stream.groups(0, stream.per_epoch)
    seen = [photo for group in groups for photo in group.photos]
    assert sorted(seen) == pack.queries_of("train").tolist()
    assert all(len(set(group.views)) == 2 for group in groups)
    for group in groups:
        labels = pack["query_label"][list(group.photos)]
        assert sorted(labels.tolist()) == [0, 1]  # a defect and its twin
    assert stream.groups(0, 3) == GroupStream(pack, "train", 2, 2, seed=3).groups(0, 3)
    following = stream.groups(stream.per_epoch, stream.per_epoch)
    assert [g.photos for g in following] != [g.photos for g in groups]


def test_splits_are_disjoint_in_shapes(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    shapes = [set(pack["query_shape"][pack.queries_of(split)].tolist()) for split in ("train", "val", "test")]
    assert all(shapes)
    assert len(shapes[0] | shapes[1] | shapes[2]) == sum(map(len, shapes))


def test_ground_truth_pairs_show_the_same_surface_point(pack_folder: Path) -> None:
    """By the cells' own surface points, which the drawing of pairs does not use for pairs of views."""
    pack = ShapePairs.open(pack_folder)
    drawing = Drawing(aided=True, view_pairs=4, photo_pairs=4, points=30)
    batch = load_batch(pack, [Group(0, (1, 3), (0, 1, 2, 3), 0)], drawing, 0)
    pairs, first_photo = batch.pairs, len(batch.views)
    aided = torch.from_numpy(np.array(pack["aided_xyz"][[1, 3]])).reshape(2, -1, 3)
    checked = 0
    for row in range(len(pairs.anchor)):
        valid = pairs.valid[row]
        anchor = int(pairs.anchor[row])
        ours = aided[anchor - first_photo] if anchor >= first_photo else batch.view_xyz[anchor]
        gap = (
            ours[pairs.anchor_cell[row][valid]]
            - batch.view_xyz[int(pairs.key[row])][pairs.key_cell[row][valid]]
        )
        gap = gap.norm(dim=1)
        gap = gap[gap.isfinite()]
        # Cells are 0.27 wide here: two points of one may lie that far apart, more where it shows two depths.
        assert float(gap.median()) < 0.27
        checked += len(gap)
    assert checked > 100
    assert {int(a) >= first_photo for a in pairs.anchor} == {True, False}


def _flipping_number(pack_folder: Path, wanted: bool) -> int:
    """A group number for which the drawing flips, or does not."""
    for number in range(20):
        if bool(np.random.default_rng((0, 2, number)).integers(2)) == wanted:
            return number
    raise AssertionError


def test_a_flip_mirrors_photo_views_points_boxes_and_pairs_together(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    number = _flipping_number(pack_folder, True)
    drawing = Drawing(aided=True, photo_pairs=0)
    plain = load_batch(pack, [Group(0, (0, 1), (0, 1), number)], drawing, 0)
    flipped = load_batch(pack, [Group(0, (0, 1), (0, 1), number)], replace(drawing, flip=True), 0)
    assert torch.equal(flipped.photos, plain.photos.flip(3))
    assert torch.equal(flipped.views, plain.views.flip(3))

    def mirrored(cells: torch.Tensor) -> torch.Tensor:
        return cells.unflatten(1, (8, 8)).flip(2).flatten(1, 2)

    for name in ("photo_share", "view_share", "change"):
        assert torch.equal(getattr(flipped, name), mirrored(getattr(plain, name)))
    want = mirrored(plain.view_xyz) * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(flipped.view_xyz, want, equal_nan=True)
    torch.testing.assert_close(flipped.box[0, 0], 1 - plain.box[0, 0])
    # The mirrored points are where the mirrored cameras show them: columns count from the other side.
    pose = np.array(pack["view_camera"][0, 0]) @ np.diag([-1.0, 1, 1, 1])
    pose = np.diag([-1.0, 1, 1, 1]) @ pose
    K = np.array(pack["view_K"][0, 0])
    xyz = flipped.view_xyz[0].double().numpy()
    known = np.isfinite(xyz).all(axis=1)
    in_cam = xyz[known] @ pose[:3, :3].T + pose[:3, 3]
    uv = in_cam @ K.T
    cell = np.floor(uv[:, :2] / uv[:, 2:] / 8).astype(int)
    assert np.array_equal(cell[:, 1] * 8 + cell[:, 0], np.flatnonzero(known))


def test_evaluation_draws_nothing(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    batch = load_batch(pack, [Group(0, (0, 1), (0, 1), 5)], Drawing(aided=True), 0)
    want = torch.from_numpy(np.array(pack["queries"][[0, 1]])).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(batch.photos, want)


def test_a_crop_never_loses_the_box(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    drawing = Drawing(crop_px=40)
    for number in range(8):
        batch = load_batch(pack, [Group(0, (0, 2), (0,), number)], drawing, 0)
        assert bool(batch.has_box.all())
        assert bool((batch.box[:, 2:] > 0).all())
        assert bool((batch.box >= 0).all())
        assert bool((batch.box <= 1).all())


def test_jitter_keeps_white_white(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    batch = load_batch(pack, [Group(0, (0,), (0,), 1)], Drawing(jitter=0.5), 0)
    white = torch.from_numpy(np.array(pack["queries"][0])).min(dim=-1).values == 255
    assert float(batch.photos[0][:, white].min()) == 1.0
    assert not torch.equal(
        batch.photos[0], load_batch(pack, [Group(0, (0,), (0,), 1)], Drawing(), 0).photos[0]
    )


def test_training_repeats_and_resumes_to_the_same_weights(pack_folder: Path, tmp_path: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    seen: list[Progress] = []
    train(pack, tmp_path / "whole", FAST, on_step=seen.append)
    train(pack, tmp_path / "parts", FAST, stop_after=1)
    train(pack, tmp_path / "parts", FAST, stop_after=3)
    result = train(pack, tmp_path / "parts", FAST)
    whole, parts = load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert [p.held_out is not None for p in seen] == [False, True, False, True]
    assert seen[0].losses.keys() == {"class", "box", "patch", "unexplained", "align"}
    assert len(result.history) == 2
    assert (tmp_path / "whole" / NETWORK).read_bytes() == (tmp_path / "parts" / NETWORK).read_bytes()


def test_a_stopped_run_goes_on_to_the_same_weights_and_both_thresholds_are_kept(
    pack_folder: Path, tmp_path: Path
) -> None:
    pack = ShapePairs.open(pack_folder)
    train(pack, tmp_path / "whole", FAST, about={"data": "made here"})
    stops = iter([False, True])
    cut = train(pack, tmp_path / "parts", FAST, stop=lambda: next(stops), about={"data": "made here"})
    assert cut.step == steps_done(tmp_path / "parts") == 2
    assert train(pack, tmp_path / "parts", FAST, about={"data": "made here"}).step == 4
    whole, parts = load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    network, about = load_network(tmp_path / "parts" / NETWORK)
    assert about["data"] == "made here"
    assert about["held_out_shapes"] == 1
    for way in ("plain", "aided"):
        looked = EvaluateConfig(split="val", aided=way == "aided", found_masks=FAST.found_masks)
        again = evaluate(network, pack, looked)
        assert about["thresholds"][way] == pytest.approx(again.best_threshold, abs=1e-6)


def test_a_run_on_other_data_is_refused(
    pack_folder: Path, pack_maker: Callable[..., Path], tmp_path: Path
) -> None:
    train(ShapePairs.open(pack_folder), tmp_path / "run", FAST, stop_after=1)
    other = ShapePairs.open(pack_maker(tmp_path / "pack", shapes=3, photos=2, seed=5))
    with pytest.raises(InputError, match="a run on other data"):
        train(other, tmp_path / "run", FAST)


def test_training_refuses_another_configurations_run_and_another_size(
    pack_folder: Path, tmp_path: Path
) -> None:
    pack = ShapePairs.open(pack_folder)
    train(pack, tmp_path, replace(FAST, steps=2), stop_after=1)
    with pytest.raises(InputError, match=r"another configuration \(rate\)"):
        train(pack, tmp_path, replace(FAST, steps=2, rate=0.5))
    with pytest.raises(InputError, match="pictures of 64 px, the network takes 96"):
        train(pack, tmp_path, replace(FAST, model=replace(TINY, px=96)))
    with pytest.raises(UsageError, match="crops"):
        replace(FAST, crop_px=48)


def test_the_baseline_and_the_papers_recipe_train(pack_folder: Path, tmp_path: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    start = without_reference(TINY)
    moved = train(pack, tmp_path / "alone", replace(FAST, model=start, steps=2)).network
    torch.manual_seed(0)
    assert not torch.equal(moved.decoder.token, CMT(start).decoder.token)
    like = replace(
        TINY, norm="batch", foreground="white", foreground_only=False, missing_as_point=True, picture_bands=0,
        patches=False, aided=False, explained=False,
    )  # fmt: skip
    config = replace(
        paper_config(photos=4, steps=2), model=like, views=2, crop_px=56, rate=1e-3, check_every=2
    )
    seen: list[Progress] = []
    train(pack, tmp_path / "paper", config, on_step=seen.append)
    assert seen[0].losses.keys() == {"class", "box", "align"}
    assert seen[0].losses["align"] > 0
    # Its alignment trains the matching head, which nothing else does.
    state = load_file(tmp_path / "paper" / STATE)
    torch.manual_seed(0)
    fresh = CMT(like).state_dict()
    assert not torch.equal(state["network.matching.mlp.0.weight"], fresh["matching.mlp.0.weight"])


def test_training_learns_to_tell_defects_on_its_own_photos(pack_folder: Path, tmp_path: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    config = replace(
        FAST, steps=25, photos=4, flip=False, jitter=0.0, withheld=0.0, rate=3e-3, check_every=25
    )
    seen: list[Progress] = []
    train(pack, tmp_path, config, on_step=seen.append)
    first = sum(sum(p.losses.values()) for p in seen[:4]) / 4
    last = sum(sum(p.losses.values()) for p in seen[-4:]) / 4
    assert last < 0.8 * first


_TWO = """
import sys
from pathlib import Path
import torch
from detect.cmt.model import ModelConfig
from prepare.shape_pairs import ShapePairs
from detect.cmt.train import TrainConfig, train
torch.set_num_threads(1)
model = ModelConfig(
    px=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), width=16, match_hidden=(16,), match_width=16, inner=32, blocks=1,
    heads=2, head_width=16, feed_forward=32, head_hidden=16, k=4, position_width=8)
config = TrainConfig(model=model, steps=3, groups=3, photos=3, views=2, warmup=1, check_every=3)
train(ShapePairs.open(Path(sys.argv[1])), Path(sys.argv[2]), config)
"""


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(pack_maker: Callable[..., Path], tmp_path: Path) -> None:
    """Three groups over two processes: unequal shares. Figures on the held-out shapes are pooled."""
    pack = pack_maker(tmp_path / "pack")
    (tmp_path / "two.py").write_text(_TWO)
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, str(tmp_path / "two.py"), str(pack), str(tmp_path / "one")]
    both = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(tmp_path / "two.py"), str(pack), str(tmp_path / "two"),
    ]  # fmt: skip
    for command in (alone, both):
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=280)
    one, two = load_file(tmp_path / "one" / STATE), load_file(tmp_path / "two" / STATE)
    worst = max(float((one[name] - two[name]).abs().max()) for name in one if name.startswith("network."))
    assert worst < 2e-4  # a tenth of what a step moves a weight; sums are rounded in another order
    moments = [name for name in one if name.endswith("exp_avg")]
    gap = max(float((one[name] - two[name]).norm() / one[name].norm().clamp_min(1e-8)) for name in moments)
    assert gap < 0.05
