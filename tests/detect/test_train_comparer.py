"""Training the comparison: examples from a product, and a network that learns what they show."""

from dataclasses import replace

import pytest
import torch

from detect.comparer import INPUTS, new_comparer
from detect.difference import difference_channels
from detect.expected import expectation
from detect.metrics import auroc
from detect.train_comparer import Example, TrainConfig, example_of, examples_of, train, train_halves
from recon.rasterize import RasterOptions, rasterize

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def toy_examples(count=6, size=64):
    """Noise with squares in the first plane: a defect where the second plane is low, none where it is high too."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        inputs = torch.randn(INPUTS, size, size, generator=generator) * 0.1
        defect = torch.zeros(size, size, dtype=torch.bool)
        for excused in (False, True, False, True):
            row, column = torch.randint(0, size - 12, (2,), generator=generator).tolist()
            place = (slice(row, row + 12), slice(column, column + 12))
            inputs[0][place] += 2.0
            if excused:
                inputs[1][place] += 2.0
            else:
                defect[place] = True
        made.append(Example(inputs.half(), defect & (inputs[1] < 1.0)))
    return made


def test_training_finds_the_planted_rule_and_the_loss_falls():
    examples = toy_examples()
    losses = []
    config = TrainConfig(steps=50, batch=2, rate=5e-3)
    network = train(examples[:5], config, new_comparer(0), lambda step, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    with torch.no_grad():
        logits = network(examples[5].inputs.float()[None])[0]
    assert auroc(logits.reshape(-1), examples[5].defect.reshape(-1)) > 0.97


def test_training_goes_on_from_the_weights_given_and_leaves_these_alone():
    start = new_comparer(0)
    before = [weight.clone() for weight in start.parameters()]
    still = train(toy_examples(1), TrainConfig(steps=1, batch=1, rate=1e-9), start)
    for was, now, trained in zip(before, start.parameters(), still.parameters(), strict=True):
        assert torch.equal(was, now)
        assert torch.allclose(was, trained, atol=1e-6)
        assert not trained.requires_grad


def weights(networks):
    return [[weight.clone() for weight in network.parameters()] for network in networks]


def test_each_half_learns_from_its_own_photos_alone_and_the_same_for_any_number_of_threads():
    photos = [[example] for example in toy_examples(4)]
    config, start = TrainConfig(steps=3, batch=2), new_comparer(0)
    told = []
    first = weights(train_halves(photos, [0, 1, 0, 1], config, start, lambda *step: told.append(step)))
    assert sorted(told)[-1] == (6, 6)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    again = weights(train_halves(photos, [0, 1, 0, 1], config, start))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    other = weights(train_halves([photos[0], photos[3], photos[2], photos[1]], [0, 1, 0, 1], config, start))
    for half in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(first[half], again[half], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[0], other[0], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first[1], other[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))


def test_examples_are_the_photo_and_its_defective_versions_the_same_for_a_seed(toy):
    camera = toy.cameras(1, seed=1)[0]
    photo = toy.photo(camera, noise_seed=1)
    expected = expectation(toy.reference, toy.loaded.detector.expected, camera)

    def made(seed):
        return examples_of(
            photo, toy.reference.gaussians, RasterOptions(), expected, difference_channels, 3, seed
        )

    first = made(0)
    assert len(first) == 1 + 3
    assert not first[0].defect.any()
    assert sum(int(example.defect.sum()) for example in first[1:]) > 20
    for example, again in zip(first, made(0), strict=True):
        assert example.inputs.shape == (INPUTS, *example.defect.shape)
        assert example.inputs.dtype == torch.float16
        assert torch.equal(example.inputs, again.inputs)
    assert any(
        a.inputs.shape != b.inputs.shape or not torch.equal(a.inputs, b.inputs)
        for a, b in zip(first, made(1), strict=True)
    )


def test_a_photo_that_shows_no_part_makes_no_example(toy):
    camera = toy.cameras(1, seed=1)[0]
    away = camera.moved(torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])) @ camera.world_to_cam)
    photo = replace(toy.photo(away), alpha=torch.zeros(100, 100))
    expected = expectation(toy.reference, toy.loaded.detector.expected, away)
    assert (
        examples_of(photo, toy.reference.gaussians, RasterOptions(), expected, difference_channels, 2, 0)
        == []
    )


def test_an_example_is_cut_to_the_part_with_its_label(toy):
    camera = toy.cameras(1, seed=3)[0]
    photo = toy.photo(camera)
    render = rasterize(toy.reference.gaussians, camera, torch.ones(3), options=RasterOptions(depth=True))
    defect = torch.zeros(100, 100, dtype=torch.bool)
    defect[48:52, 48:52] = True
    expected = expectation(toy.reference, toy.loaded.detector.expected, camera)
    example = example_of(photo, defect, render, expected, difference_channels)
    assert int(example.defect.sum()) == 16
