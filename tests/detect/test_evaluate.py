"""Metrics over photos with known truth, by hand; masks brought to the map's size."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from detect.evaluate import (
    Scored,
    Share,
    evaluate,
    evaluate_at_224,
    evaluate_by_size,
    evaluate_verdicts,
    mask_at_map_size,
)


def photo(label, score, values=None, mask=None):
    values = torch.zeros(4, 4) if values is None else values
    mask = torch.zeros(values.shape, dtype=torch.bool) if mask is None else mask
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
        metrics.aupro_01,
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


# ------------------------------------------------------------------------------------------- recall, AUPIMO, AUPRO.01


def test_recalls_at_fixed_false_alarms_are_in_percent_and_strict():
    scored = [photo("good", float(i)) for i in range(20)]
    scored += [photo("Burrs", score, mask=corner()) for score in (18.0, 18.5, 19.0, 20.0)]
    metrics = evaluate(scored)
    assert metrics.recall_01 == pytest.approx(25.0)  # none of 20 good ones may be above: 20 > 19
    assert metrics.recall_05 == pytest.approx(75.0)  # one may: above 18


def test_aupimo_is_the_mean_over_the_defective_photos_and_says_where_there_is_none():
    ramp = torch.arange(400.0 * 400).reshape(400, 400) / (400 * 400)
    small = torch.zeros(400, 400, dtype=torch.bool)
    small[:3, :3] = True
    found, lost = torch.where(small, 2.0, 0.0), torch.zeros(400, 400)
    scored = [photo("good", 0.0, ramp), photo("Burrs", 1.0, found, small), photo("Stains", 1.0, lost, small)]
    metrics = evaluate(scored)
    assert metrics.aupimo == pytest.approx(50.0)
    assert metrics.aupimo_missing == ""
    assert evaluate(scored, "Burrs").aupimo == pytest.approx(100.0)
    assert evaluate(scored, "Stains").aupimo == pytest.approx(0.0)

    tiny = evaluate([photo("good", 0.0, torch.rand(4, 4)), photo("Burrs", 1.0, corner().float(), corner())])
    assert tiny.aupimo is None
    assert "16 pixels of 1 good photos" in tiny.aupimo_missing
    assert evaluate([photo("good", 0.0)]).aupimo_missing == "no photo with a defect mask"


# --------------------------------------------------------------------------------------------------- by defect size


def blank(size=400):
    return torch.zeros(size, size, dtype=torch.bool)


def test_defects_are_counted_by_their_area_at_400_px_and_photos_by_their_sum():
    mask = blank(800)
    mask[0:6, 0:6] = True  # 36 px at 800: 9 at 400
    mask[100:120, 100:120] = True  # 400 at 800: 100 at 400, the lower end of its bin
    mask[300:380, 300:380] = True  # 1600 at 400
    on_map = mask_at_map_size(mask, 400, 400)
    one = Scored("Burrs", 1.0, torch.zeros(400, 400), on_map, mask)
    rows = evaluate_by_size([photo("good", 0.0, torch.zeros(400, 400), blank()), one])
    assert [row.name for row in rows] == ["< 25 px", "25-100 px", "100-400 px", ">= 400 px"]
    assert [row.regions for row in rows] == [1, 0, 1, 1]
    assert [row.photos for row in rows] == [0, 0, 0, 1]


def test_regions_that_touch_at_a_corner_are_one():
    mask = blank()
    mask[10:14, 10:14] = True
    mask[14:18, 14:18] = True
    one = photo("Burrs", 1.0, torch.zeros(400, 400), mask)
    rows = evaluate_by_size([photo("good", 0.0, torch.zeros(400, 400), blank()), one])
    assert [row.regions for row in rows] == [0, 1, 0, 0]


def test_a_region_is_found_by_its_hottest_pixel_up_to_two_px_beside_it():
    mask = blank()
    mask[100:106, 100:106] = True
    good = [photo("good", 0.0, torch.full((400, 400), 0.5), blank()) for _ in range(3)]

    def found(row, column, value):
        values = torch.zeros(400, 400)
        values[row, column] = value
        (size,) = [r for r in evaluate_by_size([*good, photo("Burrs", 0.0, values, mask)]) if r.regions]
        return size.regions_found

    assert found(103, 103, 0.6) == 1
    assert found(103, 103, 0.5) == 0  # no more than a good photo reaches
    assert found(98, 98, 0.6) == found(107, 107, 0.6) == 1
    assert found(97, 103, 0.6) == found(103, 108, 0.6) == 0


def test_five_percent_of_the_good_photos_may_be_hotter_and_their_scores_are_another_threshold():
    mask = blank(100)
    mask[40:43, 40:43] = True  # 9 px at 100: 144 at 400
    good = [photo("good", float(i), torch.full((100, 100), float(i)), blank(100)) for i in range(20)]

    def row(score, value):
        rows = evaluate_by_size([*good, photo("Burrs", score, value * mask.float(), mask)])
        return rows[2].photos_found, rows[2].regions_found

    assert row(18.5, 17.5) == (1, 0)
    assert row(17.5, 18.5) == (0, 1)
    assert row(18.0, 18.0) == (0, 0)


def test_sizes_of_one_type_leave_the_other_out_and_need_good_photos():
    mask = blank()
    mask[:2, :2] = True
    bad = [photo(label, 1.0, torch.zeros(400, 400), mask) for label in ("Burrs", "Stains", "Stains")]
    assert evaluate_by_size(bad) == []
    scored = [photo("good", 0.0, torch.zeros(400, 400), blank()), *bad]
    assert evaluate_by_size(scored)[0].photos == 3
    assert evaluate_by_size(scored, "Stains")[0].photos == 2
    assert evaluate_by_size(scored, "Stains")[0].photos_found == 2


# ----------------------------------------------------------------------------------------------------- 224 px protocol


def test_at_224_px_masks_are_taken_by_the_nearest_pixel_as_pillow_does_and_lost_defects_are_counted():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(400, 300, generator=generator) > 0.995
    small = Image.fromarray(mask.numpy().astype(np.uint8)).resize((224, 224), Image.Resampling.NEAREST)
    truth = np.asarray(small) > 0
    values = torch.rand(400, 300, generator=generator)
    good = photo("good", 0.0, torch.rand(224, 224, generator=generator), blank(224))
    given = torch.rand(224, 224, generator=generator)
    one = Scored("Burrs", 1.0, values, mask, mask, small=given)
    metrics = evaluate_at_224([good, one])
    pixels = np.concatenate([good.values.numpy().ravel(), given.numpy().ravel()])
    labels = np.concatenate([np.zeros(224 * 224, bool), truth.ravel()])
    assert metrics.pixel_auroc == pytest.approx(100 * roc_auc_score(labels, pixels), abs=1e-9)
    numbered, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
    kept = Image.fromarray(numbered.astype(np.int32)).resize((224, 224), Image.Resampling.NEAREST)
    seen = len(set(np.asarray(kept).ravel().tolist()) - {0})
    assert (metrics.defects, metrics.lost_defects, metrics.lost_photos) == (count, count - seen, 0)
    assert metrics.lost_defects > 100  # of about 600 single pixels, two in three are between the samples


def test_a_defect_of_one_pixel_vanishes_at_224_px_with_its_photo():
    def one(row):
        mask = blank()
        mask[row, 200] = True
        return photo("Burrs", 1.0, mask.float(), mask)

    rows = ((np.arange(224) + 0.5) * 400 / 224).astype(int)
    lost = next(row for row in range(100, 110) if row not in rows)
    good = photo("good", 0.0, torch.zeros(400, 400), blank())
    metrics = evaluate_at_224([good, one(lost)])
    assert (metrics.defects, metrics.lost_defects, metrics.lost_photos) == (1, 1, 1)
    assert (metrics.pixel_auroc, metrics.aupro_30, metrics.image_auroc) == (None, None, 100.0)


def test_maps_are_averaged_to_224_px_and_scores_stay():
    mask = blank(448)
    mask[100:140, 100:140] = True
    values = mask.float()
    metrics = evaluate_at_224(
        [photo("good", 0.0, torch.zeros(448, 448), blank(448)), photo("Burrs", 1.0, values, mask)]
    )
    assert metrics.image_auroc == 100.0
    assert metrics.pixel_auroc > 99.99
    assert metrics.aupro_30 == pytest.approx(100.0, abs=0.1)
    # Noise of single pixels is averaged away before it is compared: at full size the square is hidden in it.
    noise = torch.randint(0, 2, (448, 448), generator=torch.Generator().manual_seed(0)).float()
    noisy = [photo("good", 0.0, torch.zeros(448, 448), blank(448)), photo("Burrs", 1.0, values + noise, mask)]
    assert evaluate_at_224(noisy).pixel_auroc > evaluate(noisy).pixel_auroc + 0.01


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_verdicts_by_hand():
    pairs = [("good", "OK")] * 6 + [("good", "NG")] + [("good", "CANNOT TELL")]
    pairs += [("Burrs", "NG")] * 3 + [("Burrs", "OK")] + [("Stains", "CANNOT TELL")] * 2
    metrics = evaluate_verdicts(pairs, 0.05)
    assert (metrics.cannot_tell.count, metrics.cannot_tell.of) == (3, 14)
    assert (metrics.accurate.count, metrics.accurate.of) == (9, 11)  # of those with OK or NG
    assert metrics.accurate.percent == pytest.approx(900 / 11)
    assert (metrics.found.count, metrics.found.of) == (3, 6)
    assert (metrics.false_alarms.count, metrics.false_alarms.of) == (1, 8)
    low, high = stats.binomtest(1, 8).proportion_ci(method="exact")
    assert (metrics.false_alarms.low, metrics.false_alarms.high) == pytest.approx((100 * low, 100 * high))
    assert metrics.rate == pytest.approx(5.0)
    assert metrics.false_alarms_as_set is True
    burrs = evaluate_verdicts(pairs, 0.05, "Burrs")
    assert (burrs.found.count, burrs.found.of, burrs.accurate.of) == (3, 4, 11)
    assert evaluate_verdicts(pairs, 0.05, "Stains").found.count == 0


def test_a_rate_outside_its_interval_is_told():
    assert evaluate_verdicts([("good", "NG")] * 10 + [("good", "OK")] * 90, 0.01).false_alarms_as_set is False
    assert (
        evaluate_verdicts([("good", "OK")] * 200, 0.05).false_alarms_as_set is False
    )  # far too few is off as well
    assert evaluate_verdicts([("good", "NG")] * 10 + [("good", "OK")] * 190, 0.05).false_alarms_as_set is True


def test_shares_of_nothing_are_none():
    metrics = evaluate_verdicts([("Burrs", "CANNOT TELL")], 0.05)
    assert metrics.accurate == Share(0, 0, None, None, None)
    assert metrics.false_alarms_as_set is None
