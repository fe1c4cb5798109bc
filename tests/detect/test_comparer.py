"""The learned comparison: what it is shown, where it looks, and that the shipped weights know a defect from none."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from detect.comparer import (
    EMPTY_LOGIT,
    INPUTS,
    MARGIN_PX,
    START,
    Compared,
    compare,
    comparer_inputs,
    load_comparers,
    new_comparer,
    part_window,
    save_comparers,
)
from detect.difference import difference_channels
from detect.expected import ENOUGH_PIXELS, Expectation
from prepare.errors import InputError

pytestmark = pytest.mark.usefixtures("one_torch_thread")
# Where the planes of the inputs lie that are looked at here.
LIGHT, REL_COLOUR, PHOTO_EDGE, RENDER_EDGE, ALPHA, PHOTO_ALPHA, ALPHA_APART = 0, 7, 9, 10, 11, 12, 13


def compared(photo=None, render=None, size=(48, 64), deviation=0.0):
    """A disc of texture in the middle of white, the same in both pictures unless one is given."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    alpha = ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < 15**2).float()
    texture = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.3
    part = texture * alpha[..., None] + 1 - alpha[..., None]
    photo, render = part if photo is None else photo, part if render is None else render
    plane = torch.full((height, width), deviation)
    expected = Expectation(
        plane.expand(3, -1, -1), torch.full_like(plane, ENOUGH_PIXELS), 0 * plane, 0 * plane
    )
    return Compared(photo, alpha, render, alpha, 3.0 * alpha, difference_channels(photo, render), expected)


def painted(item, rows, columns, colour=(0.9, 0.1, 0.1)):
    photo = item.photo.clone()
    photo[rows, columns] = torch.tensor(colour)
    return replace(item, photo=photo, channels=difference_channels(photo, item.render))


def test_equal_pictures_show_no_difference_in_any_plane_that_is_one():
    inputs = comparer_inputs(compared())
    assert inputs.shape == (INPUTS, 48, 64)
    differences = [0, 1, 2, 3, 4, REL_COLOUR, REL_COLOUR + 1, ALPHA_APART]
    assert inputs[differences].abs().max() < 1e-5
    assert torch.equal(inputs[PHOTO_EDGE], inputs[RENDER_EDGE])
    assert torch.equal(inputs[ALPHA], inputs[PHOTO_ALPHA])
    assert torch.isfinite(inputs).all()


def test_a_brighter_spot_shows_in_lightness_and_less_where_good_photos_vary():
    item = painted(compared(), slice(20, 24), slice(30, 34), (0.95, 0.95, 0.95))
    inputs = comparer_inputs(item)
    assert inputs[LIGHT, 20:24, 30:34].min() > 0.3
    assert inputs[LIGHT, :10].abs().max() < 1e-5
    wild = comparer_inputs(replace(item, expected=compared(deviation=0.5).expected))
    assert wild[REL_COLOUR, 21, 31] < 0.1 * inputs[REL_COLOUR, 21, 31]


def test_inputs_do_not_tell_one_colour_from_another_of_equal_lightness_and_chroma():
    """The plane pair a, b turned about the grey axis leaves all but the signed a and b differences as they were."""
    from kornia.color import lab_to_rgb

    def flat(a, b):
        lab = torch.tensor([60.0, a, b])[None, :, None, None].expand(1, 3, 32, 32)
        return lab_to_rgb(lab)[0].permute(1, 2, 0).contiguous()

    one, other = (
        comparer_inputs(compared(photo, render, (32, 32)))
        for photo, render in ((flat(20, 5), flat(20, 0)), (flat(-5, 20), flat(0, 20)))
    )
    keep = [i for i in range(INPUTS) if i not in (1, 2)]
    assert torch.allclose(one[keep], other[keep], atol=2e-2)


def test_the_window_is_the_part_in_either_picture_with_a_margin():
    photo, render = torch.zeros(100, 120), torch.zeros(100, 120)
    assert part_window(photo, render) is None
    photo[40:50, 60:62] = 1.0
    render[45:70, 61:90] = 0.5
    rows, columns = part_window(photo, render)
    assert (rows.start, rows.stop) == (40 - MARGIN_PX, 70 + MARGIN_PX)
    assert (columns.start, columns.stop) == (60 - MARGIN_PX, min(120, 90 + MARGIN_PX))


def test_far_from_the_part_nothing_is_said_and_what_is_there_does_not_matter():
    item = compared(size=(120, 120))
    network = new_comparer(0).eval()
    logits = compare([network], item)
    far = torch.ones(120, 120, dtype=torch.bool)
    far[part_window(item.photo_alpha, item.render_alpha)] = False
    assert far.any()
    assert (logits[far] == EMPTY_LOGIT).all()
    other = painted(item, slice(0, 8), slice(0, 8))
    assert torch.equal(compare([network], other), logits)


def test_the_shipped_weights_find_a_spot_and_leave_a_good_part_alone():
    (network,) = load_comparers(START)
    good = compare([network], compared(size=(96, 96), deviation=0.02))
    assert good.max() < -1.0
    spot = compare([network], painted(compared(size=(96, 96), deviation=0.02), slice(44, 51), slice(44, 51)))
    assert spot[45:50, 45:50].mean() > 2.0
    assert spot[45:50, 45:50].min() > good.max()
    assert spot[:30].max() < 0.0


def test_the_shipped_weights_excuse_what_good_photos_do():
    (network,) = load_comparers(START)
    faint = (0.5, 0.5, 0.5)
    steady = painted(compared(size=(96, 96), deviation=0.01), slice(44, 51), slice(44, 51), faint)
    wild = painted(compared(size=(96, 96), deviation=0.4), slice(44, 51), slice(44, 51), faint)
    inside = (slice(45, 50), slice(45, 50))
    assert compare([network], wild)[inside].mean() < compare([network], steady)[inside].mean() - 1.0


def test_the_network_is_small_and_the_same_for_any_number_of_threads():
    (network,) = load_comparers(START)
    assert sum(weight.numel() for weight in network.parameters()) < 100_000
    item = painted(compared(size=(96, 96)), slice(44, 51), slice(44, 51))
    one = compare([network], item)
    torch.set_num_threads(2)
    assert torch.equal(compare([network], item), one)
    assert torch.get_num_threads() == 2


def test_several_networks_give_the_mean_of_their_logits():
    networks = [new_comparer(0).eval(), new_comparer(1).eval()]
    item = compared()
    apart = [compare([network], item) for network in networks]
    assert torch.allclose(compare(networks, item), (apart[0] + apart[1]) / 2, atol=1e-5)
    assert not torch.allclose(apart[0], apart[1], atol=0.1)


def test_networks_come_back_in_their_order_and_frozen(tmp_path):
    networks = [new_comparer(seed) for seed in (3, 1, 2)]
    save_comparers(tmp_path / "c.safetensors", networks)
    read = load_comparers(tmp_path / "c.safetensors")
    assert len(read) == 3
    for one, other in zip(networks, read, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert not b.requires_grad


def test_random_weights_depend_on_their_seed_alone():
    torch.manual_seed(1)
    one = new_comparer(5)
    torch.manual_seed(2)
    for a, b in zip(one.parameters(), new_comparer(5).parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.out.weight, new_comparer(6).out.weight)


@pytest.mark.parametrize("damage", ["gone", "cut", "another network", "none in it", "no number"])
def test_damaged_weights_are_refused_with_their_name(tmp_path, damage):
    path = tmp_path / "comparer.safetensors"
    if damage == "cut":
        path.write_bytes(START.read_bytes()[:300])
    elif damage == "another network":
        save_file({name: tensor[:1].contiguous() for name, tensor in load_file(START).items()}, path)
    elif damage == "none in it":
        save_file({}, path)
    elif damage == "no number":
        save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(
        InputError, match=r"comparer\.safetensors: the weights of the comparison cannot be read"
    ):
        load_comparers(path)
