"""The report: whole, self-contained, safe against hostile names, and its pictures show what the run holds."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.errors import InputError
from splatad.report import ReportDefect, ReportPhoto, ReportRun, write_report

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
    assert [card["id"] for card in cards] == ["photo-1", "photo-2", "photo-3", "photo-4"]
    assert [card["data-verdict"] for card in cards] == ["ng", "ok", "ct", "ng"]
    links = {a["href"] for a in page.having("a")}
    assert links == {"#photo-1", "#photo-2", "#photo-3", "#photo-4"}
    assert [row["data-name"] for row in page.having("tr") if "data-name" in row] == [
        "a.png", "good/1.png", HOSTILE, "b.png",
    ]  # fmt: skip


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
    magenta = (shown["Photo"][..., 0] > 0.75) & (shown["Photo"][..., 1] < 0.35)
    rows, columns = magenta.nonzero()
    assert len(rows) > 8
    # The defect's centre is (42, 22) in the photo, half that in the picture; the number's tag hangs below, right.
    assert abs(columns.min() - (21 - 7)) <= 2
    assert abs(rows.min() - (11 - 7)) <= 2
    np.testing.assert_allclose(shown["Reference"], 0.25, atol=0.02)
    differences = shown["Differences"]
    coloured = differences.max(-1) - differences.min(-1) > 0.15
    assert coloured[10:12, 20:22].all()
    assert not coloured[20:].any()


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
    assert "1 missing part 7.25 16 px 40–44 × 20–24 0.125, -0.250, 1.500" in text
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
