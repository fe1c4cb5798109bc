"""The report: whole, self-contained, safe against hostile names, and its pictures show what the run holds."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import Camera
from prepare.errors import InputError
from splatad.part_picture import PartDefect, PartMarker, PartView
from splatad.report import (
    ReportDefect,
    ReportFused,
    ReportFusedDefect,
    ReportPhoto,
    ReportRun,
    write_report,
)

HOSTILE = "<script>alert(\"1\")</script> & 'x'.png"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def having(self, tag: str, css_class: str = "") -> list[dict[str, str]]:
        return [
            a
            for t, a in self.elements
            if t == tag and (not css_class or css_class in a.get("class", "").split())
        ]


def opened(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")) / 255


def defect_at(*box: int) -> ReportDefect:
    return ReportDefect("missing part", 16, (box[0], box[1], box[2], box[3]), (0.125, -0.25, 1.5), 7.25)


def photo(name: str, **changes) -> ReportPhoto:
    """A grey 80 x 60 photo of verdict NG with one defect at (40..44, 20..24)."""
    hot = torch.zeros(60, 80)
    hot[20:24, 40:44] = 9.0
    plain = ReportPhoto(
        name=name,
        verdict="NG",
        reasons=("Something is missing at the door.",),
        score=7.25,
        photo=torch.full((60, 80, 3), 0.5),
        render=torch.full((30, 40, 3), 0.25),
        anomaly_map=hot,
        defects=(defect_at(40, 20, 44, 24),),
        numbers={"pose belief": "0.98"},
        label="Missing",
        seconds={"locate": 2.0, "compare": 0.5},
    )
    return replace(plain, **changes)


def run_of(*photos: ReportPhoto, **changes) -> ReportRun:
    plain = ReportRun(
        title="Inspection",
        reference="01Gorilla",
        threshold=4.0,
        false_alarm_rate=0.01,
        threshold_note="It comes from 40 good views.",
        good_scores=(1.0, 1.5, 2.0, 2.2),
        photos=photos,
        metrics=None,
        footer={"splatad": "0.1.0", "config": "seed: 0\nsteps: 3000"},
        map_range=(1.0, 6.0),
    )
    return replace(plain, **changes)


def page_of(run: ReportRun, folder: Path, **options) -> Page:
    write_report(run, folder / "report.html", **options)
    assert [p.name for p in folder.iterdir()] == ["report.html"], "nothing but the report may stay behind"
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def mixed_run() -> ReportRun:
    good = photo("good/1.png", verdict="OK", reasons=(), score=1.25, defects=(), label="good")
    lost = photo(
        HOSTILE,
        verdict="CANNOT TELL",
        score=None,
        render=None,
        anomaly_map=None,
        defects=(),
        label=None,
        seconds={},
    )
    return run_of(photo("a.png"), good, lost, photo("b.png", score=float("nan")))


def test_every_photo_has_a_row_and_a_card_that_it_links_to(tmp_path: Path) -> None:
    page = page_of(mixed_run(), tmp_path)
    cards = page.having("article", "card")
    assert [card["id"] for card in cards] == ["photo-1", "photo-4", "photo-3", "photo-2"], "NG first"
    assert [card["data-verdict"] for card in cards] == ["ng", "ng", "ct", "ok"]
    links = {a["href"] for a in page.having("a") if a["href"].startswith("#photo-")}
    assert links == {"#photo-1", "#photo-2", "#photo-3", "#photo-4"}
    assert [row["data-name"] for row in page.having("tr") if "data-name" in row] == [
        "a.png", "b.png", HOSTILE, "good/1.png",
    ]  # fmt: skip


def test_every_link_leads_to_an_element_and_every_name_is_given_once(tmp_path: Path) -> None:
    for run in (mixed_run(), part_run(), fused_run()):
        page = page_of(run, tmp_path)
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids))
        targets = {a["href"][1:] for tag, a in page.elements if tag in ("a", "use") and "href" in a}
        assert targets <= set(ids), targets - set(ids)


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    page = page_of(mixed_run(), tmp_path)
    assert page.open == []
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            if name in attributes:
                assert re.match(r"data:|#", attributes[name]), f"<{tag} {name}={attributes[name]}>"
        assert not any(name.startswith("on") for name in attributes), "no code in attributes"
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/[^\"]*|^ *// .*$", "", html, flags=re.M)
    )
    policy = next(
        a["content"] for a in page.having("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy


def test_a_hostile_name_is_shown_as_text_and_never_run(tmp_path: Path) -> None:
    hostile = photo(
        HOSTILE,
        label=HOSTILE,
        reasons=(HOSTILE,),
        defects=(replace(defect_at(1, 2, 3, 4), kind=HOSTILE),),
        numbers={HOSTILE: HOSTILE},
        seconds={HOSTILE: 1.0},
    )
    metrics = {HOSTILE: {HOSTILE: HOSTILE}}
    footer = {HOSTILE: HOSTILE, "config": HOSTILE + "\n" + HOSTILE}
    run = run_of(
        hostile, title=HOSTILE, reference=HOSTILE, threshold_note=HOSTILE, metrics=metrics, footer=footer
    )
    page = page_of(run, tmp_path)
    assert len(page.having("script")) == 1
    assert "alert" not in re.search(
        r"<script>(.*?)</script>", (tmp_path / "report.html").read_text(encoding="utf-8"), re.S
    ).group(1)
    assert page.text.count(HOSTILE) >= 15


def test_a_name_with_bytes_that_are_no_text_is_still_written(tmp_path: Path) -> None:
    page = page_of(run_of(photo("part\udcff.png")), tmp_path)
    assert "part\\udcff.png" in page.text


def test_the_counts_and_the_limit_are_said_in_words(tmp_path: Path) -> None:
    page = page_of(mixed_run(), tmp_path)
    text = " ".join(page.text.split())
    assert "4 photos compared with the good part 01Gorilla" in text
    assert re.search(r"2 ?NG.*1 ?CANNOT TELL.*1 ?OK", text)
    assert "A photo is NG from a score of 4.00 on." in text
    assert "About 1 in 100 good photos is called NG by mistake (1 %). It comes from 40 good views." in text
    assert "2 without a score" in text


def test_pictures_decode_and_show_circle_render_and_map(tmp_path: Path) -> None:
    page = page_of(run_of(photo("a.png")), tmp_path, picture_px=40)
    shown = {a["data-name"]: opened(a["src"]) for a in page.having("img") if "data-name" in a}
    assert {name: picture.shape for name, picture in shown.items()} == dict.fromkeys(
        ("Photo", "Reference", "Differences"), (30, 40, 3)
    )
    np.testing.assert_allclose(shown["Photo"], 0.5, atol=0.02)  # the circle lies over it, not in it
    np.testing.assert_allclose(shown["Reference"], 0.25, atol=0.02)
    differences = shown["Differences"]
    coloured = differences.max(-1) - differences.min(-1) > 0.15
    assert coloured[10:12, 20:22].all()
    assert not coloured[20:].any()


def test_each_picture_of_a_photo_is_ringed_where_its_defect_is(tmp_path: Path) -> None:
    page = page_of(run_of(photo("a.png")), tmp_path, picture_px=40)
    # The box (40..44, 20..24) has its centre at (42, 22) in the photo, half that in the picture; its half diagonal there
    # is sqrt(2) px.
    rings = page.having("ellipse", "line")
    assert len(rings) == 3
    assert {(float(a["cx"]), float(a["cy"])) for a in rings} == {(21.0, 11.0)}
    assert float(rings[0]["rx"]) == pytest.approx(2**0.5 + 0.012 * 40, abs=0.01)
    assert [a["viewbox"] for a in page.having("svg", "marks")] == ["0 0 40 30"] * 3


def test_the_kind_of_a_defect_is_told_by_shape_as_well_as_by_colour(tmp_path: Path) -> None:
    defects = tuple(
        replace(defect_at(x, 20, x + 4, 24), kind=kind)
        for x, kind in ((10, "something missing"), (40, "something added"), (70, "discoloured"))
    )
    page = page_of(run_of(photo("a.png", defects=defects)), tmp_path)
    plates = [a["d"] for a in page.having("path", "plate")]
    assert ["a" in d for d in plates] == [False, False, True], "only the pill has arcs"
    assert [d.count("l") for d in plates] == [0, 3, 0], "only the hexagon has slanted sides"
    table = [a["class"] for a in page.having("span", "tag")][-3:]
    assert table == ["tag mk-missing box", "tag mk-added hexagon", "tag mk-changed pill"]


def test_a_picture_keeps_the_photos_own_pixels_up_to_the_limit(tmp_path: Path) -> None:
    sharp = torch.zeros(400, 400, 3)
    sharp[::8, :, :] = 1.0
    large = torch.full((900, 1200, 3), 0.5)
    page = page_of(run_of(photo("a", photo=sharp), photo("b", photo=large, render=None)), tmp_path)
    first, second = [opened(a["src"]) for a in page.having("img") if a.get("data-name") == "Photo"]
    np.testing.assert_allclose(first, sharp, atol=0.1)
    assert second.shape == (600, 800, 3)
    assert "at 67 % of its size" in page.text


def test_a_large_page_holds_smaller_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splatad.report.PAGE_BUDGET", 1000)
    pictures = [photo(str(i), photo=torch.full((600, 600, 3), 0.5), defects=()) for i in range(2)]
    page = page_of(run_of(*pictures), tmp_path)
    sizes = [opened(a["src"]).shape[0] for a in page.having("img") if a.get("data-name") == "Photo"]
    assert sizes == [600, 480]


def test_what_cannot_be_told_is_striped_and_said(tmp_path: Path) -> None:
    unknown = torch.zeros(60, 80, dtype=torch.bool)
    unknown[:, :20] = True
    page = page_of(run_of(photo("a", unknown=unknown)), tmp_path)
    shown = next(opened(a["src"]) for a in page.having("img") if a.get("data-name") == "Differences")
    blue = shown[..., 2] - shown[..., 0]
    assert blue[:, 2:18].mean() > 0.05  # JPEG's ringing: single pixels tell nothing
    assert np.ptp(blue[:, 2:18]) > 0.08, "stripes, no even tint"
    assert np.abs(blue[30:, 25:]).max() < 0.02
    assert "striped: cannot be told" in page.text


def test_the_lens_knows_the_place_of_each_defect_and_how_to_use_it_is_said(tmp_path: Path) -> None:
    page = page_of(run_of(photo("a.png")), tmp_path)
    row = next(a for a in page.having("tr") if a.get("data-defect") == "1-1")
    assert (float(row["data-x"]), float(row["data-y"])) == (42 / 80, round(22 / 60, 4))
    pictures = [a for a in page.having("img") if "data-name" in a]
    assert [(a["tabindex"], a["role"], a["aria-describedby"]) for a in pictures] == [
        ("0", "button", "lens-help")
    ] * 3
    assert any(a.get("id") == "lens-help" for _, a in page.elements)
    assert {a["data-defect"] for _, a in page.elements if "data-defect" in a} == {"1-1"}


class FlatPart:
    """Stands for the pictures of a part: two sides of 40 x 30 px, the second of which hides every defect but the first."""

    def __init__(self) -> None:
        self.asked: list[PartDefect] = []

    def views(self, defects: Sequence[PartDefect]) -> tuple[PartView, ...]:
        self.asked = list(defects)
        lens = Camera(torch.eye(4), 40.0, 40.0, 20.0, 15.0, 40, 30)
        sides = [
            tuple(PartMarker(i, 20.0, 15.0, 5.0, side == 0 or i == 0) for i in range(len(defects)) if i < 3)
            for side in range(2)
        ]
        return tuple(PartView(torch.full((30, 40, 3), 0.5), lens, markers) for markers in sides)


def part_run(count: int = 1, **changes) -> ReportRun:
    defects = tuple(
        replace(defect_at(40, 20, 44, 24), peak=float(count - i), extent=0.5) for i in range(count)
    )
    return run_of(
        photo("a.png", defects=defects),
        photo("b.png", verdict="OK", defects=()),
        **{"part_views": {"01Gorilla": FlatPart().views}, "scale_to_mm": 10.0} | changes,
    )


def fused_run() -> ReportRun:
    fused = ReportFused(
        "NG",
        ("two defects are seen",),
        2,
        (
            ReportFusedDefect(1, "something missing", (0.5, 0.25, 0.125), 0.25, ("a.png", "b.png"), 9.0),
            ReportFusedDefect(2, "stain", (0.0, 0.0, 1.0), None, ("gone.png",), 5.0),
        ),
        0.875,
    )
    defects = (replace(defect_at(40, 20, 44, 24), fused=1),)
    return run_of(
        photo("a.png", defects=defects),
        photo("b.png", defects=defects),
        fused=fused,
        part_views={"01Gorilla": FlatPart().views},
    )


def test_the_part_shows_the_defects_of_all_photos_with_links_both_ways(tmp_path: Path) -> None:
    pictures = FlatPart()
    page = page_of(part_run(4, part_views={"01Gorilla": pictures.views}), tmp_path)
    assert [d.label for d in pictures.asked] == ["1.1", "1.2", "1.3", "1.4"]
    assert pictures.asked[0].centre_xyz == (0.125, -0.25, 1.5)
    marks = [a for a in page.having("a", "mk") if a["data-defect"] == "1-2"][:2]
    assert [("behind" in a["class"], a.get("id")) for a in marks] == [(False, "p1-2"), (True, None)]
    assert {a["href"] for a in marks} == {"#d1-2"}
    assert "#p1-2" in {a["href"] for a in page.having("a", "plain")}
    text = " ".join(page.text.split())
    assert "with the defects of all photos marked (3 of 4)" in text
    assert "Not in these pictures: 1.4." in text
    assert "x, y, z, mm" in text
    assert "1.2, -2.5, 15.0 5.0 mm" in text  # 0.125 is 1.25 mm, to even; half a unit is 5 mm


def test_a_defect_of_the_only_photo_keeps_its_number_on_the_part(tmp_path: Path) -> None:
    pictures = FlatPart()
    page_of(run_of(photo("a.png"), part_views={"01Gorilla": pictures.views}), tmp_path)
    assert [d.label for d in pictures.asked] == ["1"]


def test_a_run_without_defects_shows_no_part(tmp_path: Path) -> None:
    good = photo("a.png", verdict="OK", defects=())
    page = page_of(run_of(good, part_views={"01Gorilla": FlatPart().views}), tmp_path)
    assert not page.having("section", "part")


def test_of_several_references_each_part_shows_its_own_defects(tmp_path: Path) -> None:
    car, truck = FlatPart(), FlatPart()
    run = run_of(
        photo("a.png", part="car"),
        photo("b.png", part="truck"),
        photo("c.png", part="truck"),
        photo("d.png", part=None),
        several=True,
        part_views={"car": car.views, "truck": truck.views},
    )
    page = page_of(run, tmp_path)
    assert ([d.label for d in car.asked], [d.label for d in truck.asked]) == (["1.1"], ["2.1", "3.1"])
    assert len(page.having("section", "part")) == 2


def test_the_verdict_of_several_photos_of_one_part_stands_at_the_top(tmp_path: Path) -> None:
    pictures = FlatPart()
    page = page_of(replace(fused_run(), part_views={"01Gorilla": pictures.views}), tmp_path)
    text = " ".join(page.text.split())
    verdict = re.search("The part, from 2 photos together ?88 % of its surface", text)
    assert verdict is not None
    assert verdict.start() < text.index("All photos")
    assert "Two defects are seen." in text
    assert "1 something missing 9.00 0.500, 0.250, 0.125 0.250 a.png, b.png" in text
    assert "2 stain 5.00 0.000, 0.000, 1.000 – gone.png" in text
    assert [d.label for d in pictures.asked] == ["1", "2"], "the part shows the defects put together"
    links = [a["href"] for a in page.having("a")]
    assert links.count("#df1") >= 2  # from both photos' tables
    assert "#photo-1" in links


def test_the_time_of_each_stage_is_a_share_of_a_bar(tmp_path: Path) -> None:
    slow = photo("slow.png", seconds={"locate": 6.0, "compare": 0.5})
    page = page_of(run_of(photo("a.png"), photo("b.png"), slow), tmp_path)
    text = " ".join(page.text.split())
    assert "Median of 3 photos: 2.5 s each. The slowest, slow.png: 6.5 s." in text
    bar = [a["style"] for a in page.having("i") if "width" in a.get("style", "")][-2:]
    assert bar == ["width: 80.0%", "width: 20.0%"]


def test_versions_and_settings_are_folded_away(tmp_path: Path) -> None:
    page = page_of(run_of(photo("a.png")), tmp_path)
    assert [a.get("class", "") for a in page.having("details")] == ["fold", ""]
    assert not any("open" in a for a in page.having("details"))
    assert "seed: 0" in page.text


def test_letters_have_contrast_enough_in_light_and_in_dark(tmp_path: Path) -> None:
    write_report(run_of(photo("a.png")), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", html, re.S)
    assert len(blocks) == 2
    for block in blocks:
        colour = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        pairs = [(ink, ground) for ink in ("ink", "soft", "link") for ground in ("page", "card")]
        pairs += [(tone, ground) for tone in ("ok", "ng", "ct") for ground in (f"{tone}-fill", "card")]
        for ink, ground in pairs:
            assert contrast(colour[ink], colour[ground]) >= 4.5, f"{ink} on {ground}"


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_close_up_shows_the_defect_and_the_reference_at_the_same_place(tmp_path: Path) -> None:
    picture, render = torch.full((60, 80, 3), 0.5), torch.full((30, 40, 3), 0.25)
    picture[20:24, 40:44] = torch.tensor([1.0, 0.0, 0.0])
    render[10:12, 20:22] = torch.tensor([0.0, 0.0, 1.0])  # the same place at half the size
    page = page_of(run_of(photo("a.png", photo=picture, render=render)), tmp_path)
    near, same_place = (opened(a["src"]) for a in page.having("img") if a["alt"].startswith("defect 1"))
    centre = near.shape[0] // 2
    assert near[centre, centre, 0] > 0.9
    assert near[centre, centre, 1] < 0.2
    assert same_place[centre, centre, 2] > 0.8
    np.testing.assert_allclose(near[4, 4], 0.5, atol=0.05)
    np.testing.assert_allclose(same_place[4, 4], 0.25, atol=0.05)


def test_the_defects_are_listed_with_place_size_and_strength(tmp_path: Path) -> None:
    two = (
        defect_at(40, 20, 44, 24),
        replace(defect_at(0, 0, 80, 60), centre_xyz=None, area_px=4800, kind="stain"),
    )
    text = " ".join(page_of(run_of(photo("a.png", defects=two)), tmp_path).text.split())
    assert "1 missing part 7.25 16 px 40–44 × 20–24 0.125, -0.250, 1.500 –" in text
    assert "2 stain 7.25 4,800 px 0–80 × 0–60 –" in text
    assert "2.5 s locate 2 s · compare 0.5 s" in text


def test_the_limit_stands_between_the_scores_it_parts(tmp_path: Path) -> None:
    ok = photo("ok.png", verdict="OK", score=3.9, defects=())
    page = page_of(run_of(ok, photo("ng.png", score=4.4)), tmp_path)
    limit = next(float(a["x1"]) for a in page.having("line") if a.get("stroke-dasharray"))
    dot = next(float(a["cx"]) for a in page.having("circle", "mark") if float(a["cx"]) != 6)
    square = max(float(a["x"]) + float(a["width"]) / 2 for a in page.having("rect", "mark"))
    assert dot < limit < square
    bars = [a for a in page.having("rect") if a.get("fill") == "var(--bar)" and a["width"] != "12"]
    assert all(float(a["x"]) < limit for a in bars)
    assert len(bars) == 4


def test_scores_over_decades_get_a_logarithmic_axis(tmp_path: Path) -> None:
    far = photo("far.png", score=4000.0)
    assert "logarithmic axis" in page_of(run_of(photo("a.png"), far), tmp_path).text


def test_a_run_without_any_score_has_no_plot_and_still_a_page(tmp_path: Path) -> None:
    lost = photo("a.png", verdict="CANNOT TELL", score=None, render=None, anomaly_map=None, defects=())
    page = page_of(run_of(lost, good_scores=(), threshold=None, false_alarm_rate=None), tmp_path)
    assert not page.having("svg", "plot")
    assert "No camera was found for this photo." in page.text
    assert len(page.having("article")) == 1


def test_a_run_without_photos_is_a_page_too(tmp_path: Path) -> None:
    page = page_of(run_of(), tmp_path)
    assert "0 photos" in page.text
    assert not page.having("article")


def test_labelled_photos_give_the_roc_curve_and_its_area(tmp_path: Path) -> None:
    scores = {"good": (1.0, 3.0), "Burrs": (2.0, 4.0)}  # pairs won by the defect: 2>1, 4>1, 4>3 of four
    photos = [photo(f"{label}{s}", label=label, score=s) for label, values in scores.items() for s in values]
    photos.append(photo("lost", label="Burrs", verdict="CANNOT TELL", score=None))
    page = page_of(run_of(*photos), tmp_path)
    text = " ".join(page.text.split())
    assert "AUROC 75.0 % over 2 good and 2 defective photos. Without a score and left out: 1." in text
    assert "At the limit 1 of 2 defective and 0 of 2 good photos are NG." in text
    assert "known to be good" in text
    points = page.having("polyline")[0]["points"]
    assert points == "0.00,100.00 0.00,50.00 50.00,50.00 50.00,0.00 100.00,0.00"


def test_the_metrics_stand_beside_the_published_ones(tmp_path: Path) -> None:
    metrics = {
        "this run": {"image AUROC": 95.12, "on": "mad_car"},
        "SplatPose": {"image AUROC": 93.9, "AUPRO": 95.8},
    }
    text = " ".join(page_of(run_of(photo("a.png"), metrics=metrics), tmp_path).text.split())
    assert "image AUROC on AUPRO this run 95.1 mad_car – SplatPose 93.9 – 95.8" in text


def test_photos_are_taken_one_at_a_time_and_reported(tmp_path: Path) -> None:
    taken: list[str] = []
    done: list[str] = []

    def photos() -> Iterator[ReportPhoto]:
        for name in ("a", "b", "c"):
            assert done == taken, "the card before must be written before the next photo is loaded"
            taken.append(name)
            yield photo(name)

    page = page_of(run_of(photos=photos()), tmp_path, on_photo=done.append)
    assert done == ["a", "b", "c"]
    assert len(page.having("article")) == 3


def test_an_interrupted_run_leaves_the_old_report_whole(tmp_path: Path) -> None:
    write_report(run_of(photo("old.png")), tmp_path / "report.html")
    before = (tmp_path / "report.html").read_bytes()

    def photos() -> Iterator[ReportPhoto]:
        yield photo("new.png")
        raise InputError("b.png: cannot be read")

    with pytest.raises(InputError, match=r"b\.png"):
        write_report(run_of(photos=photos()), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_photo_that_cannot_be_loaded_is_not_blamed_on_the_reports_folder(tmp_path: Path) -> None:
    def photos() -> Iterator[ReportPhoto]:
        yield photo("a.png")
        Path(tmp_path / "gone" / "b.png").read_bytes()

    with pytest.raises(InputError, match=r"photo cannot be read .*b\.png"):
        write_report(run_of(photos=photos()), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_map_range_that_does_not_rise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="map_range"):
        write_report(run_of(photo("a"), map_range=(2.0, 2.0)), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
LISTEN = """<script>
window.faults = [];
addEventListener("error", (event) => faults.push("error: " + event.message));
addEventListener("securitypolicyviolation", (event) => faults.push("policy: " + event.blockedURI));
console.error = (...words) => faults.push("console: " + words.join(" "));
</script>"""
ACT = """<script>
const said = {};
const frames = [...document.querySelectorAll(".pictures .frame")];
const lenses = () => [...document.querySelectorAll(".lens")].map((lens) => {
  const [frame, box, image] = [lens.parentElement, lens, lens.querySelector("img")].map((e) => e.getBoundingClientRect());
  const cross = ["--x", "--y"].map((name) => parseFloat(lens.style.getPropertyValue(name)) + 2);
  return {
    shown: !lens.hidden && box.width > 0, inside: box.left >= frame.left - 1 && box.right <= frame.right + 1,
    // the place of the picture that lies under the cross, and by how much it is enlarged
    place: [(box.left + cross[0] - image.left) / image.width, (box.top + cross[1] - image.top) / image.height],
    times: image.width / frame.width,
  };
});
const move = (pointerType) => {
  const box = frames[1].getBoundingClientRect();
  const [clientX, clientY] = [box.left + 0.25 * box.width, box.top + 0.75 * box.height];
  frames[1].dispatchEvent(new PointerEvent("pointermove", { pointerType, bubbles: true, clientX, clientY }));
};
move("mouse");
said.mouse = lenses();
frames[1].dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" }));
said.left = lenses();
move("touch");
said.touch = lenses();
const press = (key) => new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
const key = (name) => frames[0].querySelector("img").dispatchEvent(press(name));
key("ArrowRight"); said.keys = lenses();
key("+"); said.closer = lenses();
key("Escape"); said.escaped = lenses();
const row = document.querySelector("tr[data-defect]");
row.dispatchEvent(new PointerEvent("pointerenter"));
said.row = lenses();
said.lit = document.querySelectorAll(".mk.lit").length;
row.dispatchEvent(new PointerEvent("pointerleave"));
said.unlit = document.querySelectorAll(".lit").length;
key("Enter");
said.dialog = document.querySelector("dialog").open;
said.rings = document.querySelectorAll("dialog .marks ellipse.line").length;
said.wide = document.documentElement.scrollWidth - innerWidth;
said.faults = faults;
document.title = JSON.stringify(said);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_in_a_browser_the_lens_shows_the_same_place_of_all_three_pictures(tmp_path: Path) -> None:
    """Also: nothing is reported to the console, keys do as the page says, and touch is left alone."""
    wide = photo("a.png", photo=torch.full((300, 400, 3), 0.5), anomaly_map=torch.zeros(300, 400))
    defects = (defect_at(200, 90, 240, 120),)
    write_report(part_run(photos=(replace(wide, defects=defects),)), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<head>") == html.count("</body>") == 1
    html = html.replace("<head>", "<head>" + LISTEN).replace("</body>", ACT + "</body>")
    (tmp_path / "driven.html").write_text(html, encoding="utf-8")
    said = in_browser(tmp_path / "driven.html", tmp_path / "profile")
    assert said["faults"] == []
    for moment, place in (("mouse", (0.25, 0.75)), ("row", (220 / 400, 105 / 300))):
        assert len(said[moment]) == 3
        for lens in said[moment]:
            assert lens["shown"]
            assert lens["inside"]
            assert lens["place"] == pytest.approx(place, abs=0.005)
            assert lens["times"] > 2
    assert not any(lens["shown"] for moment in ("left", "touch", "escaped") for lens in said[moment])
    assert all(lens["shown"] for lens in said["keys"])
    assert said["closer"][0]["times"] > said["keys"][0]["times"] + 0.5
    assert (
        said["lit"] == 3 + 1 + 2 * 2
    )  # rings of three pictures, a plate on the photo, both on both sides of the part
    assert said["unlit"] == 0
    assert said["dialog"]
    assert said["rings"] == 1
    assert said["wide"] <= 0, "no sideways scrolling"


def in_browser(page: Path, profile: Path) -> dict:
    """What the page's driving script put into the title, in headless Chromium without network."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1280,1000 --dump-dom"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None
    return json.loads(unescape(title.group(1)))
