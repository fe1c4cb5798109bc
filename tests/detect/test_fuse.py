"""One verdict and one set of 3D defects from several photos of a part."""

import itertools
import math

import pytest
import torch

from detect.calibrate import calibrate
from detect.defect_kind import KindEvidence
from detect.defects import Defect
from detect.fuse import PartPhoto, fuse, part_surface, surface_shown
from detect.verdict import Verdict
from pose.locate import BeliefLimits

N = 100  # splats, each of one unit of surface
SURFACE = torch.ones(N)
OK, NG, DOUBT = Verdict("OK", ("fine",)), Verdict("NG", ("bad",)), Verdict("CANNOT TELL", ("blurred",))


def calibration(count=99, rate=0.1, source="held-out"):
    """Good scores 1, 2, ..., count."""
    scores = [float(i + 1) for i in range(count)]
    names = [str(i) for i in range(count)]
    return calibrate(scores, names, rate, BeliefLimits(), source=source, detector="comparer")


def defect(centre=(0.0, 0.0, 0.0), extent=0.2, kind="added", peak=5.0, splats=(), area=0.01):
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 1] = True
    return Defect(
        kind, (1, 1, 2, 2), 1, peak, peak, centre, extent, area, None, mask,
        torch.tensor(splats, dtype=torch.int64), KindEvidence(0.0, 0.0, 0.0, 1.0, 1.0, 0.0),
    )  # fmt: skip


def photo(name, verdict=OK, score=1.0, shown=range(N), defects=()):
    covers = torch.zeros(N)
    covers[list(shown)] = 1.0
    return PartPhoto(name, verdict, score, None if verdict is DOUBT else covers, tuple(defects))


def test_the_smallest_p_value_is_held_against_the_rate_over_the_number_of_photos():
    # 99 good photos: a score of 95 has p = (1 + 5) / 100 = 0.06: enough at 10 % for one photo, not for two (5 %)
    one = fuse([photo("a", NG, 95.0)], calibration(), SURFACE)
    assert (one.verdict.name, one.p_value) == ("NG", pytest.approx(0.06))
    two = fuse([photo("a", NG, 95.0), photo("b")], calibration(), SURFACE)
    assert (two.verdict.name, two.p_limit) == ("OK", pytest.approx(0.05))
    assert any("a alone would be NG" in reason and "12%" in reason for reason in two.verdict.reasons)
    # 96 has p = 0.05: just at the limit
    assert fuse([photo("a", NG, 96.0), photo("b")], calibration(), SURFACE).verdict.name == "NG"


@pytest.mark.parametrize("kind", [calibration(9), calibration(99, 0.02), calibration(99, source="fitted")])
def test_where_good_photos_are_too_few_any_ng_counts_and_a_reason_says_so(kind):
    part = fuse([photo("a", NG, 200.0), photo("b"), photo("c")], kind, SURFACE)
    assert (part.verdict.name, part.p_limit) == ("NG", None)
    assert any("too few to hold" in reason and "3 photos" in reason for reason in part.verdict.reasons)


def test_false_alarms_of_good_parts_stay_at_the_rate_whatever_the_number_of_photos():
    generator = torch.Generator().manual_seed(3)
    rate, trials = 0.1, 1000
    for count in (1, 4):
        alarms = 0
        for _ in range(trials):
            scores = torch.rand(199 + count, generator=generator, dtype=torch.float64).tolist()
            good = calibrate(
                scores[:199], [""] * 199, rate, BeliefLimits(), source="held-out", detector="comparer"
            )
            photos = [
                photo(str(i), NG if score > good.threshold else OK, score)
                for i, score in enumerate(scores[199:])
            ]
            alarms += fuse(photos, good, SURFACE).verdict.name == "NG"
        assert alarms / trials < rate + 3 * math.sqrt(rate * (1 - rate) / trials)
        assert alarms / trials > 0.5 * rate  # Bonferroni loses little at such rates


def test_a_photo_that_cannot_tell_does_not_veto_but_is_named():
    part = fuse([photo("a"), photo("b", DOUBT, None)], calibration(), SURFACE)
    assert (part.verdict.name, part.believed, part.doubted) == ("OK", ("a",), ("b",))
    assert "b counts for nothing: blurred" in part.verdict.reasons
    accused = fuse([photo("a", NG, 200.0), photo("b", DOUBT, None)], calibration(), SURFACE)
    assert (accused.verdict.name, accused.p_limit) == ("NG", None)  # one photo: its own verdict stands
    none = fuse([photo("a", DOUBT, None), photo("b", DOUBT, None)], calibration(), SURFACE)
    assert (none.verdict.name, none.coverage, none.p_value) == ("CANNOT TELL", 0.0, None)


def test_coverage_is_the_share_of_the_surface_that_believed_photos_show():
    photos = [photo("a", shown=range(30)), photo("b", shown=range(20, 60)), photo("c", DOUBT, None)]
    part = fuse(photos, calibration(), SURFACE)
    assert part.coverage == pytest.approx(0.6)
    assert "60%" in part.verdict.reasons[0]
    uneven = SURFACE.clone()
    uneven[60:] = 3.0
    assert fuse(photos, calibration(), uneven).coverage == pytest.approx(60 / 180)
    assert fuse(photos, calibration(), SURFACE, least_coverage=0.6).verdict.name == "OK"
    short = fuse(photos, calibration(), SURFACE, least_coverage=0.61)
    assert short.verdict.name == "CANNOT TELL"
    assert "take more photos" in short.verdict.reasons[0]
    photos[0] = photo("a", NG, 200.0, range(30))
    assert fuse(photos, calibration(), SURFACE, least_coverage=0.61).verdict.name == "NG"


def test_defects_whose_spheres_meet_are_one_at_the_mean_weighted_by_peak():
    a = defect((0.0, 0.0, 0.0), 0.2, "added", 6.0, area=0.02)
    b = defect((0.14, 0.0, 0.0), 0.1, "missing", 2.0, area=0.03)  # 0.14 < (0.2 + 0.1) / 2
    far = defect((0.5, 0.0, 0.0), 0.1, "changed", 9.0)
    part = fuse(
        [photo("a", NG, 200.0, defects=[a]), photo("b", NG, 300.0, defects=[far, b])], calibration(), SURFACE
    )
    first, second = part.defects
    assert (first.number, first.kind, first.members) == (1, "changed", (("b", 0),))
    assert (second.number, second.kind, second.peak) == (2, "added", 6.0)  # 6 against 2 votes
    assert second.centre == pytest.approx((0.14 * 2 / 8, 0.0, 0.0))
    assert (second.extent, second.area) == (0.2, 0.03)
    assert second.members == (("a", 0), ("b", 1))
    assert second.seen_in == ("a", "b")


def test_defects_that_share_splats_are_one_wherever_their_centres_lie():
    a = defect((0.0, 0.0, 0.0), 0.01, splats=range(10))
    b = defect((5.0, 0.0, 0.0), 0.01, splats=range(6, 16))  # 4 of 16 shared
    c = defect((0.0, 9.0, 0.0), 0.01, splats=range(15, 30))  # 1 of 24 shared with b
    nowhere = defect(None, None, splats=range(10))
    photos = [photo(n, NG, 200.0, defects=[d]) for n, d in zip("abcd", (a, b, c, nowhere), strict=True)]
    part = fuse(photos, calibration(), SURFACE)
    assert sorted(d.seen_in for d in part.defects) == [("a", "b", "d"), ("c",)]
    joined = next(d for d in part.defects if len(d.seen_in) == 3)
    assert joined.splats.tolist() == list(range(16))


def test_unclear_kinds_have_no_vote_beside_a_clear_one():
    a, b = defect(kind="changed", peak=9.0), defect(kind="discoloured", peak=2.0)
    part = fuse(
        [photo("a", NG, 200.0, defects=[a]), photo("b", NG, 200.0, defects=[b])], calibration(), SURFACE
    )
    assert [d.kind for d in part.defects] == ["discoloured"]


def test_photos_that_show_the_place_but_no_defect_lower_the_agreement():
    found = defect(splats=range(20, 40))
    photos = [
        photo("a", NG, 200.0, range(50), [found]),
        photo("b", shown=range(30, 80)),  # half of its splats
        photo("c", shown=range(31, 80)),  # less than half
        photo("d", DOUBT, None),
    ]
    (fused,) = fuse(photos, calibration(), SURFACE).defects
    assert (fused.seen_in, fused.not_seen_in) == (("a",), ("b",))
    assert fused.agreement == 0.5


def test_the_order_of_the_photos_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    photos = []
    for name in "abcd":
        places = torch.rand(3, 3, generator=generator).mul(0.4).tolist()
        peaks = torch.rand(3, generator=generator).add(5.0).tolist()
        found = [
            defect(tuple(place), 0.12, kind, peak, range(5 * i, 5 * i + 8))
            for i, (place, peak, kind) in enumerate(
                zip(places, peaks, ("added", "missing", "changed"), strict=True)
            )
        ]
        photos.append(photo(name, NG, 200.0, range(70), sorted(found, key=lambda d: -d.peak)))
    photos += [photo("e"), photo("f", DOUBT, None)]

    def plain(part):
        return part.verdict, part.p_value, part.coverage, [
            {**vars(d), "splats": d.splats.tolist()} for d in part.defects
        ]  # fmt: skip

    expected = plain(fuse(photos, calibration(), SURFACE))
    assert expected[3]
    for order in itertools.islice(itertools.permutations(photos), 0, 720, 37):
        assert plain(fuse(order, calibration(), SURFACE)) == expected


def test_surface_shown_is_what_the_photo_shows_and_all_views_together_show_the_part(toy):
    reference = toy.reference
    camera = reference.views[0].camera
    shown = surface_shown(reference, camera)
    means = reference.gaussians.means
    # Opaque boxes at depth near 3: what the camera covers, in world units squared, is what the splats show.
    covered = float(toy.photos[0].alpha.sum()) * 3.0**2 / (camera.fl_x * camera.fl_y)
    assert float(shown.sum()) == pytest.approx(covered, rel=0.15)
    facing = (means - camera.centre) @ camera.forward < 3.0
    assert float(shown[facing].sum()) > 0.8 * float(shown.sum())
    whole = part_surface(reference)
    ring = [
        PartPhoto(str(i), OK, 1.0, surface_shown(reference, view.camera), ())
        for i, view in enumerate(reference.views)
    ]
    assert fuse(ring, calibration(), whole).coverage == pytest.approx(1.0, abs=1e-3)
    assert 0.15 < fuse(ring[:1], calibration(), whole).coverage < 0.6
