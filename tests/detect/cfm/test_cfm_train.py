"""Training: resumed to the same weights, whatever the order; the presets; few shots; scales; the file that is left."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from detect.cfm.checkpoint import load_checkpoint
from detect.cfm.score import FUSIONS
from detect.cfm.train import (
    NETWORK,
    STATE,
    TrainConfig,
    _Kept,
    _Run,
    drawn_pixels,
    few_shot,
    published_config,
    steps_of,
    train,
)
from prepare.errors import InputError, MissingPartError, UsageError

from .conftest import PHOTO_WIDTH, SHAPE_WIDTH, made_features

pytestmark = pytest.mark.usefixtures("one_torch_thread")
FAST = TrainConfig(steps=6, batch=3, pixels=32, check_every=2, least_hidden=0, folds=0)
FEATURES = {"photo": "made"}


def weights(folder):
    return load_file(folder / NETWORK)


def go(made, out, config=FAST, **more):
    return train(made.samples(), made, out, config, FEATURES, **more)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_training_comes_to_the_same_weights_and_scales(made_class, tmp_path):
    whole = go(made_class(), tmp_path / "whole")
    stopped = go(made_class(), tmp_path / "parts", stop_after=3)
    assert (stopped.checkpoint, stopped.step) == (None, 3)
    assert not (tmp_path / "parts" / NETWORK).exists()
    looks = 0

    def after_one_more():
        nonlocal looks
        looks += 1
        return looks == 1

    assert go(made_class(), tmp_path / "parts", stop=after_one_more).step == 4
    parts = go(made_class(), tmp_path / "parts")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert parts.checkpoint.scales == whole.checkpoint.scales
    assert parts.history == whole.history
    assert [look["step"] for look in whole.history] == [2, 4, 6]
    # Once more changes nothing; another seed gives other weights.
    before = (tmp_path / "whole" / NETWORK).read_bytes()
    go(made_class(), tmp_path / "whole")
    assert (tmp_path / "whole" / NETWORK).read_bytes() == before
    go(made_class(), tmp_path / "seed", TrainConfig(**{**vars(FAST), "seed": 1}))
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "seed"))


def test_the_order_in_which_samples_are_listed_and_read_changes_nothing(made_class, tmp_path):
    made, turned = made_class(), made_class()
    turned.everything.reverse()
    first, second = go(made, tmp_path / "a"), go(turned, tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first.checkpoint.scales == second.checkpoint.scales
    assert len(made.reads) == len(set(made.reads)) == 14  # each of 8 + 6 once, then kept in memory


def test_a_photo_s_pixels_at_a_step_do_not_depend_on_the_batch(made_class, tmp_path):
    made = made_class()
    kept = _Kept(made, torch.device("cpu"))
    runs = [
        _Run(
            made.samples("train"), [], kept, tmp_path / str(batch), TrainConfig(steps=4, batch=batch, pixels=16), 4, {},
            torch.device("cpu"),
        )
        for batch in (8, 4)
    ]  # fmt: skip
    all_eight = runs[0]._batch(0)[0]
    halves = [runs[1]._batch(step)[0] for step in (0, 1)]
    photos = [runs[1].photos(step)[1] for step in (0, 1)]
    assert sorted(photos[0] + photos[1]) == runs[0].photos(0)[1] == list(range(8))
    for rows, numbers in zip(halves, photos, strict=True):
        for place, number in enumerate(numbers):
            torch.testing.assert_close(
                rows[place * 16 : place * 16 + 16], all_eight[number * 16 : number * 16 + 16], rtol=0, atol=0
            )


def test_pixels_are_valid_drawn_without_repetition_and_all_where_asked():
    features = made_features(0)
    valid = features.valid.nonzero()[:, 0]
    some = drawn_pixels(features, 40, True, [1])
    assert len(set(some.tolist())) == 40
    assert bool(features.valid[some].all())
    assert torch.equal(some, some.sort().values)
    assert torch.equal(drawn_pixels(features, 0, True, [1]), valid)
    assert torch.equal(drawn_pixels(features, 10**6, True, [1]), valid)
    assert len(drawn_pixels(features, 0, False, [1])) == len(features.valid)
    assert not torch.equal(some, drawn_pixels(features, 40, True, [2]))


def test_the_published_recipe_and_its_steps():
    config = published_config()
    assert (config.batch, config.pixels, config.rate, config.schedule) == (4, 0, 1e-3, "constant")
    assert (config.standardise, config.deep, config.least_hidden) == (False, False, 0)
    assert steps_of(config, 244) == 250 * 61  # bagel
    assert steps_of(config, 210) == 250 * 53  # the last batch of an epoch is smaller
    assert steps_of(TrainConfig(), 244) == TrainConfig().steps


def test_few_shots_are_the_first_in_sorted_order_or_drawn_and_keep_the_full_run_s_steps(made_class, tmp_path):
    made = made_class()
    listed = made.samples("train")[::-1]
    names = [s.name for s in few_shot(listed, TrainConfig(shots=3))]
    assert names == ["train/good/000", "train/good/001", "train/good/002"]
    drawn = {
        tuple(s.name for s in few_shot(listed, TrainConfig(shots=3, drawn=True, seed=seed)))
        for seed in range(6)
    }
    assert len(drawn) > 1
    assert all(len(set(one)) == 3 and list(one) == sorted(one) for one in drawn)
    with pytest.raises(UsageError, match="--shots 9: the class has 8 training photos"):
        few_shot(listed, TrainConfig(shots=9))
    config = TrainConfig(steps=0, epochs=2, batch=4, pixels=8, shots=2, folds=0, check_every=9)
    result = go(made, tmp_path / "few", config)
    assert result.steps == 2 * 2  # of all 8 photos, not of the 2
    assert result.checkpoint.about["photos"] == ["train/good/000", "train/good/001"]


def test_standardisation_is_that_of_the_training_photos_and_lies_in_the_file(
    made_class, tmp_path, monkeypatch
):
    monkeypatch.setattr("detect.cfm.train.STANDARD_PIXELS", 0)  # all of them
    pair = go(made_class(), tmp_path / "a").checkpoint.pair
    rows = torch.cat(
        [
            made_class().get(s).rows(made_class().get(s).valid.nonzero()[:, 0])[1]
            for s in made_class().samples("train")
        ]
    )
    torch.testing.assert_close(pair.shape_mean, rows.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair.shape_spread, rows.std(0, correction=0), atol=1e-4, rtol=1e-4)
    plain = go(
        made_class(), tmp_path / "b", TrainConfig(**{**vars(FAST), "standardise": False})
    ).checkpoint.pair
    assert torch.equal(plain.shape_mean, torch.zeros(SHAPE_WIDTH))
    assert torch.equal(plain.photo_spread, torch.ones(PHOTO_WIDTH))


def test_without_a_validation_split_each_photo_is_scored_by_networks_that_did_not_see_it(
    made_class, tmp_path
):
    config = TrainConfig(**{**vars(FAST), "folds": 3})
    seen = {}
    made = made_class(validation=0, train=7)
    stages = []
    result = go(made, tmp_path / "run", config, on_step=lambda p: stages.append(p.stage))
    scales = result.checkpoint.scales
    assert set(scales) == set(FUSIONS)
    assert scales["product"].source == "cross-fitted"
    assert [photo.name for photo in scales["product"].good] == [s.name for s in made.samples("train")]
    assert set(stages) == {"training", "fold 1 of 3", "fold 2 of 3", "fold 3 of 3"}
    # Fold 2 holds photos 1 and 4: changing photo 1 changes neither its networks nor photo 4's score.
    other = made_class(validation=0, train=7)
    usual = other.get
    other.get = lambda s: made_features(999) if s.name == "train/good/001" else usual(s)
    again = go(other, tmp_path / "other", config).checkpoint.scales["product"]
    seen = {photo.name: photo.total for photo in scales["product"].good}
    changed = {photo.name for photo in again.good if photo.total != seen[photo.name]}
    assert "train/good/004" not in changed
    assert {"train/good/000", "train/good/001", "train/good/002"} <= changed
    assert go(made_class(validation=0), tmp_path / "none", FAST).checkpoint.scales == {}


def test_photos_that_cannot_be_read_are_left_out_and_named(made_class, tmp_path):
    made = made_class()
    made.broken = {"train/good/003", "validation/good/002"}
    result = go(made, tmp_path / "run")
    assert dict(result.refused).keys() == made.broken
    assert "12 points" in dict(result.refused)["train/good/003"]
    assert len(result.checkpoint.about["photos"]) == 7
    assert len(result.checkpoint.scales["product"].good) == 5
    made.broken = {s.name for s in made.samples("train")}
    with pytest.raises(
        InputError, match=r"none of the training photos can be used: train/good/000: .*12 points"
    ):
        go(made, tmp_path / "none")

    def missing(sample):
        raise MissingPartError("weights of dino: not there")

    made.get = missing
    with pytest.raises(MissingPartError, match="weights of dino"):
        go(made, tmp_path / "weights")


def test_a_run_of_another_configuration_or_of_other_data_is_not_gone_on_with(made_class, tmp_path):
    go(made_class(), tmp_path, stop_after=2)
    with pytest.raises(InputError, match=r"another configuration \(rate\)"):
        go(made_class(), tmp_path, TrainConfig(**{**vars(FAST), "rate": 0.5}))
    with pytest.raises(InputError, match="other photos or features"):
        go(made_class(train=9), tmp_path)
    with pytest.raises(InputError, match="other photos or features"):
        go(made_class(), tmp_path, data="changed")
    (tmp_path / STATE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="start again in another folder"):
        go(made_class(), tmp_path)


def test_features_without_numbers_end_the_training_with_what_to_do(made_class, tmp_path):
    made = made_class()
    usual = made.get

    def broken(sample):
        features = usual(sample)
        features.photo[int(features.valid.nonzero()[0, 0])] = float("nan")
        return features

    made.get = broken
    with pytest.raises(InputError, match="step 1: the loss is nan"):
        go(made, tmp_path, TrainConfig(**{**vars(FAST), "pixels": 0}))


def test_damaged_and_foreign_network_files_are_refused_in_one_line(made_class, tmp_path):
    result = go(made_class(), tmp_path)
    back = load_checkpoint(tmp_path / NETWORK)
    assert (back.features, back.scales) == (FEATURES, result.checkpoint.scales)
    tensors = weights(tmp_path)
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="not weights of this detector"):
        load_checkpoint(tmp_path / "plain.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / NETWORK).read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_checkpoint(tmp_path / "half.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / NETWORK, framework="pt") as file:
        header = file.metadata()
    tensors.pop("to_shape.0.bias")
    save_file(tensors, tmp_path / "less.safetensors", metadata=header)
    with pytest.raises(InputError, match=r"tensors that are not this network's.*to_shape\.0\.bias"):
        load_checkpoint(tmp_path / "less.safetensors")
