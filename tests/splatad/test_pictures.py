"""Pictures: the colour scale is absolute, strokes land where they say, and nothing else is touched."""

import io
import itertools

import pytest
import torch
from PIL import Image

from splatad.pictures import (
    MARKS,
    VERDICT_COLOURS,
    circle_defects,
    colour_bar,
    draw_boxes,
    draw_contour,
    faded,
    hatched,
    map_colours,
    mark_of,
    overlay_map,
    resized,
    side_by_side,
    to_bytes,
    verdict_banner,
)


def grey_photo(height: int = 120, width: int = 160) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.3 + 0.2 * torch.rand(height, width, 3, generator=generator)


def lightness(rgb: torch.Tensor) -> torch.Tensor:
    """CIE L* of sRGB colours in [0, 1]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16


def test_the_maps_colours_darken_evenly_so_that_they_can_be_ordered_in_grey() -> None:
    steps = -lightness(map_colours(64)).diff()
    assert (steps > 0.3).all()
    assert steps.max() < 2.0


def test_the_map_is_drawn_on_an_absolute_scale() -> None:
    photo = grey_photo()
    weak = torch.zeros(120, 160)
    weak[10, 10] = 2.0
    strong = weak.clone()
    strong[60, 60] = 50.0
    first, second = overlay_map(photo, weak, 1.0, 6.0), overlay_map(photo, strong, 1.0, 6.0)
    # A hot spot elsewhere does not change the colour here, as scaling each photo by its own maximum would.
    torch.testing.assert_close(first[10, 10], second[10, 10], rtol=0, atol=0)
    torch.testing.assert_close(second[60, 60], overlay_map(photo, strong * 100, 1.0, 6.0)[60, 60])


def test_the_map_shows_nothing_below_low_and_its_last_colour_at_high() -> None:
    photo = grey_photo()
    values = torch.full((120, 160), 0.99)
    values[0, 0], values[0, 1], values[0, 2] = 6.0, float("nan"), float("inf")
    drawn = overlay_map(photo, values, 1.0, 6.0, opacity=1.0)
    torch.testing.assert_close(drawn[1:], photo[1:], rtol=0, atol=0)
    torch.testing.assert_close(drawn[0, 1], photo[0, 1], rtol=0, atol=0)
    torch.testing.assert_close(drawn[0, 0], map_colours()[-1])
    torch.testing.assert_close(drawn[0, 2], map_colours()[-1])


def test_an_upside_down_range_is_refused() -> None:
    with pytest.raises(ValueError, match="low must lie below high"):
        overlay_map(grey_photo(), torch.zeros(120, 160), 2.0, 2.0)


def test_a_faded_photo_keeps_its_order_of_brightness_and_loses_its_colour() -> None:
    red_and_grey = torch.tensor([[[0.8, 0.1, 0.1], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]])
    result = faded(red_and_grey, strength=1.0)
    assert (result.amax(-1) - result.amin(-1)).max() < 1e-6
    assert result[0, 1, 0] > result[0, 0, 0] > result[0, 2, 0] > 0.3


def test_a_circle_goes_round_the_defect_and_leaves_it_and_the_rest_alone() -> None:
    photo = grey_photo(200, 300)
    drawn = circle_defects(photo, [(140, 90, 160, 110)])
    changed = (drawn != photo).any(-1)
    assert not changed[90:110, 140:160].any()
    assert not changed[:60].any()
    assert not changed[:, :100].any()
    # Walking right from the centre meets red once, and so does walking up.
    red = (drawn[..., 0] > 0.8) & (drawn[..., 1] < 0.3)
    assert red[100, 160:].any()
    assert red[:90, 150].any()
    right, left = red[100].nonzero().max(), red[100].nonzero().min()
    assert abs(float(right + left + 1) / 2 - 150) <= 0.5


def test_a_speck_at_the_edge_still_gets_a_circle() -> None:
    photo = grey_photo(200, 300)
    changed = (circle_defects(photo, [(0, 199, 1, 200)], ["1"]) != photo).any(-1)
    assert changed.sum() > 30
    assert changed[180:, :20].any()


def test_a_frame_lies_outside_its_box_and_its_label_inside_the_image() -> None:
    photo = grey_photo(200, 300)
    drawn = draw_boxes(photo, [(270, 2, 299, 30)], ["Missing"], [(10, 60, 200)])
    changed = (drawn != photo).any(-1)
    assert not changed[2:30, 270:299].any()
    blue = (drawn[..., 2] > 0.7) & (drawn[..., 0] < 0.1)
    assert blue[10, 268]
    assert blue[32:60, 200:].any()  # the tag went below: there is no room above


def test_a_contour_is_the_rim_outside_the_mask() -> None:
    photo = grey_photo(50, 60)
    mask = torch.zeros(50, 60, dtype=torch.bool)
    mask[20:30, 20:40] = True
    drawn = draw_contour(photo, mask, (0, 255, 0))
    changed = (drawn != photo).any(-1)
    expected = torch.zeros_like(mask)
    expected[19:31, 19:41] = True
    torch.testing.assert_close(changed, expected & ~mask)
    torch.testing.assert_close(drawn[19, 19], torch.tensor([0.0, 1.0, 0.0]))


def test_pictures_side_by_side_share_a_height_and_stand_in_order() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).expand(100, 80, 3)
    blue = torch.tensor([0.0, 0.0, 1.0]).expand(50, 80, 3)  # twice as wide at the same height
    sheet = side_by_side([red, blue], ["photo", "render"])
    reds = (sheet[..., 0] > 0.9) & (sheet[..., 1] < 0.1)
    blues = (sheet[..., 2] > 0.9) & (sheet[..., 1] < 0.1)
    assert int(reds.sum()) == 100 * 80
    assert int(blues.sum()) == 100 * 160
    assert reds.nonzero()[:, 1].max() < blues.nonzero()[:, 1].min()
    caption = sheet[: int(reds.nonzero()[:, 0].min())]
    assert (caption < 0.3).any()
    with pytest.raises(ValueError, match="one caption per image"):
        side_by_side([red], [])


def test_a_colour_bar_runs_over_the_maps_colours() -> None:
    bar = colour_bar(0.0, 8.0, width=200, height=40)
    torch.testing.assert_close(bar[5], map_colours(200), rtol=0, atol=1 / 255)
    assert (bar[25:] < 0.4).any()


def test_verdicts_differ_in_sign_and_not_in_colour_alone() -> None:
    signs = {}
    for verdict in ("OK", "NG", "CANNOT TELL"):
        banner = verdict_banner(verdict, "", 300, 40)
        ground = torch.tensor(VERDICT_COLOURS[verdict]) / 255
        torch.testing.assert_close(banner[0, -1], ground, rtol=0, atol=1 / 255)
        signs[verdict] = ((banner[:, :40] - ground).abs().sum(-1) > 0.5).float()
    for one, other in itertools.combinations(signs.values(), 2):
        assert one.sum() > 30
        assert (one - other).abs().sum() > 0.5 * one.sum()


def test_verdict_colours_have_contrast_for_their_letters() -> None:
    for verdict, letters in (("OK", 1.0), ("NG", 1.0), ("CANNOT TELL", 0.12)):
        ground = lightness(torch.tensor(VERDICT_COLOURS[verdict]) / 255)
        assert abs(float(lightness(torch.full((3,), letters)) - ground)) > 45


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0.51 / 255), ("JPEG", 0.06)])
def test_an_image_survives_its_file(kind, tolerance: float) -> None:
    ramp = torch.linspace(0, 1, 64)[None, :, None].expand(48, 64, 3).contiguous()
    opened = Image.open(io.BytesIO(to_bytes(ramp, kind)))
    assert opened.format == kind
    pixels = torch.tensor(list(opened.convert("RGB").getdata())).reshape(48, 64, 3) / 255
    torch.testing.assert_close(pixels, ramp, rtol=0, atol=tolerance)


def test_a_photo_of_pure_noise_can_be_written() -> None:
    noise = torch.rand(400, 400, 3, generator=torch.Generator().manual_seed(0))
    assert Image.open(io.BytesIO(to_bytes(noise, "JPEG"))).size == (400, 400)


def test_resizing_keeps_a_flat_colour_and_takes_the_asked_size() -> None:
    flat = torch.full((30, 40, 3), 0.2)
    torch.testing.assert_close(resized(flat, 20, 90), torch.full((90, 20, 3), 0.2), rtol=0, atol=1e-6)


def test_kinds_of_defects_differ_in_shape_and_carry_white_letters() -> None:
    assert len({mark.shape for mark in MARKS}) == len({mark.colour for mark in MARKS}) == 3
    for mark in MARKS:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (v / 255 for v in mark.colour)
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("kind", "name"),
    [("something missing", "missing"), ("Added", "added"), ("looks different", "changed"), ("", "changed")],
)
def test_a_mark_is_found_by_the_words_for_a_kind(kind: str, name: str) -> None:
    assert mark_of(kind).name == name


def test_stripes_lie_on_the_mask_alone() -> None:
    image = grey_photo()
    mask = torch.zeros(120, 160, dtype=torch.bool)
    mask[20:60, 30:90] = True
    striped = hatched(image, mask)
    assert torch.equal(striped[~mask], image[~mask])
    moved = (striped - image).abs().sum(-1)[mask]
    assert (moved > 0).all()
    strong = (striped[mask] - image.new_tensor([0.35, 0.45, 0.6])).abs().sum(-1) < 0.15
    assert 0.2 < float(strong.float().mean()) < 0.5, "a third of the area is stripe"
