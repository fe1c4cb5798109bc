"""Metrics over photos with known truth, by hand; masks brought to the map's size."""

import pytest
import torch

from detect.evaluate import Scored, evaluate, mask_at_map_size


def photo(label, score, values=None, mask=None):
    values = torch.zeros(4, 4) if values is None else values
    mask = torch.zeros(4, 4, dtype=torch.bool) if mask is None else mask
    return Scored(label, score, values, mask)


def corner():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2] = True
    return mask


def test_image_figures_by_hand_in_percent():
    scored = [
        photo("good", 1.0),
        photo("good", 3.0),
        photo("Burrs", 2.0, mask=corner()),
        photo("Stains", 4.0, mask=corner()),
    ]
    metrics = evaluate(scored)
    assert metrics.photos == 4
    assert metrics.image_auroc == pytest.approx(75.0)  # 3 of 4 pairs in order
    assert metrics.image_ap == pytest.approx(100 * (1 / 1 + 2 / 3) / 2)
    assert metrics.image_f1 == pytest.approx(80.0)  # threshold 2: precision 2/3, recall 1


def test_a_perfect_map_has_all_pixel_figures_at_a_hundred():
    mask = corner()
    metrics = evaluate([photo("good", 0.0), photo("Burrs", 1.0, mask.float(), mask)])
    for value in (
        metrics.pixel_auroc,
        metrics.pixel_ap,
        metrics.pixel_f1,
        metrics.aupro_30,
        metrics.aupro_05,
    ):
        assert value == pytest.approx(100.0)


def test_pixel_auroc_counts_the_pixels_of_good_photos_too():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    hot = torch.zeros(4, 4)
    hot[0, 0] = 1.0
    loud = torch.full((4, 4), 2.0)
    metrics = evaluate([photo("good", 0.0, loud), photo("Burrs", 1.0, hot, mask)])
    assert metrics.pixel_auroc == pytest.approx(100 * 15 / 31)  # above 15 of the 31 good pixels
    assert metrics.pixel_ap == pytest.approx(100 / 17)
    assert metrics.aupro_30 == pytest.approx(0.0)  # first found at a false-positive rate of 16 / 31


def test_figures_that_need_both_kinds_are_none_with_one():
    only_good = evaluate([photo("good", 1.0), photo("good", 2.0)])
    assert (only_good.image_auroc, only_good.image_ap, only_good.image_f1) == (None, None, None)
    assert (only_good.pixel_auroc, only_good.pixel_ap, only_good.pixel_f1) == (None, None, None)
    assert (only_good.aupro_30, only_good.aupro_05) == (None, None)
    only_bad = evaluate([photo("Burrs", 1.0, corner().float(), corner())])
    assert only_bad.image_auroc is None
    assert only_bad.pixel_auroc == pytest.approx(100.0)
    assert evaluate([]).photos == 0
    assert evaluate([]).image_auroc is None


def test_one_defect_type_is_measured_against_the_good_photos():
    scored = [photo("good", 2.0), photo("Burrs", 1.0, mask=corner()), photo("Stains", 3.0, mask=corner())]
    assert evaluate(scored, "Burrs").image_auroc == pytest.approx(0.0)
    assert evaluate(scored, "Stains").image_auroc == pytest.approx(100.0)
    assert evaluate(scored, "Stains").photos == 2
    assert evaluate(scored, "Missing").image_auroc is None


def test_the_order_of_the_photos_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    scored = [
        photo(
            "good" if i % 3 == 0 else "Burrs",
            float(torch.rand(1, generator=generator)),
            torch.rand(4, 4, generator=generator),
            corner() if i % 3 else None,
        )
        for i in range(9)
    ]
    order = torch.randperm(9, generator=generator).tolist()
    a, b = evaluate(scored), evaluate([scored[i] for i in order])
    for name in (
        "image_auroc",
        "image_ap",
        "image_f1",
        "pixel_auroc",
        "pixel_ap",
        "pixel_f1",
        "aupro_30",
        "aupro_05",
    ):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-12)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (31, 17), (100, 100), (7, 5), (150, 133)])
def test_a_one_pixel_defect_is_never_lost(height, width):
    for row, column in ((0, 0), (99, 119), (50, 63), (33, 1), (98, 77)):
        mask = torch.zeros(100, 120, dtype=torch.bool)
        mask[row, column] = True
        small = mask_at_map_size(mask, height, width)
        assert small.shape == (height, width)
        rows, columns = small.nonzero().T
        # found in the map pixels that overlap it and in no others
        assert len(rows) >= 1
        assert ((rows * 100 < (row + 1) * height) & ((rows + 1) * 100 > row * height)).all()
        assert ((columns * 120 < (column + 1) * width) & ((columns + 1) * 120 > column * width)).all()


def test_a_mask_of_the_maps_size_stays_as_it_is():
    mask = torch.rand(9, 11) > 0.5
    assert torch.equal(mask_at_map_size(mask, 9, 11), mask)
