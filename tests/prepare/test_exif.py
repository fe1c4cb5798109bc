"""The focal length in EXIF data: the two ways to state it, other sizes, either orientation, and junk."""

import math
import random

import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from prepare.errors import InputError
from prepare.exif import focal_from_exif

TAG = ExifTags.Base
ORIENTATION = 0x0112


def photo(path, size=(600, 400), orientation=None, **tags):
    """A photo file with the given EXIF tags."""
    exif = Image.Exif()
    exif[TAG.Make] = "Maker"  # Pillow drops EXIF data without a tag at its top from a PNG
    if orientation is not None:
        exif[ORIENTATION] = orientation
    for name, value in tags.items():
        exif.get_ifd(ExifTags.IFD.Exif)[getattr(TAG, name)] = value
    Image.new("RGB", size, (90, 120, 60)).save(path, exif=exif)
    return path


def rational(numerator, denominator):
    """A fraction written as it stands, even with a denominator of zero."""
    return TiffImagePlugin.IFDRational(numerator, denominator)


def test_a_35_mm_equivalent_has_the_photos_diagonal_angle_of_view(tmp_path):
    focal = focal_from_exif(photo(tmp_path / "a.jpg", (4000, 3000), FocalLengthIn35mmFilm=28))
    film_angle = 2 * math.atan(math.hypot(36, 24) / 2 / 28)
    assert 2 * math.atan(5000 / 2 / focal) == pytest.approx(film_angle, rel=1e-12)
    # On 3:2 that is the film's own shape: 36 mm across the width.
    focal = focal_from_exif(photo(tmp_path / "b.jpg", (600, 400), FocalLengthIn35mmFilm=50))
    assert focal == pytest.approx(600 * 50 / 36, rel=1e-12)


def test_a_photo_stored_lying_has_the_same_focal_length_upright(tmp_path):
    lying = photo(tmp_path / "a.jpg", (600, 400), orientation=6, FocalLengthIn35mmFilm=50)
    assert focal_from_exif(lying) == pytest.approx(600 * 50 / 36, rel=1e-12)


@pytest.mark.parametrize(("unit", "mm"), [(2, 25.4), (3, 10.0), (4, 1.0), (5, 0.001), (None, 25.4)])
def test_the_sensors_resolution_and_the_focal_length_give_it_in_every_unit(tmp_path, unit, mm):
    # A sensor 24 mm wide with 600 px: 25 px a mm; a lens of 50 mm is 1250 px.
    density = 25.0 * mm
    tags = {} if unit is None else {"FocalPlaneResolutionUnit": unit}
    path = photo(
        tmp_path / "a.jpg",
        FocalLength=rational(500, 10),
        FocalPlaneXResolution=rational(round(density * 10_000_000), 10_000_000),
        **tags,
    )
    assert focal_from_exif(path) == pytest.approx(1250.0, rel=1e-6)


def test_a_photo_made_smaller_since_has_a_shorter_focal_length_in_px(tmp_path):
    tags = {"FocalLength": 50.0, "FocalPlaneXResolution": 250.0, "FocalPlaneResolutionUnit": 4}
    whole = photo(tmp_path / "a.jpg", (600, 400), ExifImageWidth=6000, ExifImageHeight=4000, **tags)
    assert focal_from_exif(whole) == pytest.approx(1250.0)
    # Turned in an editor since: the tags still say landscape.
    turned = photo(tmp_path / "b.jpg", (400, 600), ExifImageWidth=6000, ExifImageHeight=4000, **tags)
    assert focal_from_exif(turned) == pytest.approx(1250.0)


def test_the_35_mm_equivalent_goes_first_and_the_sensor_stands_in_where_it_is_zero(tmp_path):
    tags = {"FocalLength": 50.0, "FocalPlaneXResolution": 25.0, "FocalPlaneResolutionUnit": 4}
    assert focal_from_exif(photo(tmp_path / "a.jpg", FocalLengthIn35mmFilm=36, **tags)) == pytest.approx(
        600.0
    )
    assert focal_from_exif(photo(tmp_path / "b.jpg", FocalLengthIn35mmFilm=0, **tags)) == pytest.approx(
        1250.0
    )


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"FocalLengthIn35mmFilm": 0},
        {"FocalLengthIn35mmFilm": 65535},  # written for "infinite" and by mistake: 1 degree and less
        {"FocalLengthIn35mmFilm": 1},
        {"FocalLength": rational(50, 1)},
        {"FocalLength": rational(50, 0), "FocalPlaneXResolution": 25.0, "FocalPlaneResolutionUnit": 4},
        {"FocalLength": rational(0, 0), "FocalPlaneXResolution": 25.0, "FocalPlaneResolutionUnit": 4},
        {"FocalLength": 50.0, "FocalPlaneXResolution": rational(1, 0), "FocalPlaneResolutionUnit": 4},
        {"FocalLength": 50.0, "FocalPlaneXResolution": 25.0, "FocalPlaneResolutionUnit": 99},
        {"FocalLength": 50.0, "FocalPlaneXResolution": 1e6, "FocalPlaneResolutionUnit": 4},
        {"FocalPlaneXResolution": 25.0, "FocalPlaneResolutionUnit": 4},
    ],
)
def test_what_is_missing_zero_or_impossible_is_no_focal_length(tmp_path, tags):
    assert focal_from_exif(photo(tmp_path / "a.jpg", **tags)) is None


def test_files_without_exif_have_none_and_a_png_with_it_has_one(tmp_path):
    Image.new("RGB", (600, 400)).save(tmp_path / "a.png")
    Image.new("RGB", (600, 400)).save(tmp_path / "a.bmp")
    assert focal_from_exif(tmp_path / "a.png") is None
    assert focal_from_exif(tmp_path / "a.bmp") is None
    assert focal_from_exif(photo(tmp_path / "b.png", FocalLengthIn35mmFilm=36)) == pytest.approx(600.0)
    assert focal_from_exif(photo(tmp_path / "b.webp", FocalLengthIn35mmFilm=36)) == pytest.approx(600.0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_data_never_stops_a_photo(tmp_path):
    whole = photo(
        tmp_path / "whole.jpg",
        (60, 40),
        orientation=6,
        FocalLengthIn35mmFilm=36,
        FocalLength=rational(500, 10),
        FocalPlaneXResolution=rational(25, 1),
        FocalPlaneResolutionUnit=4,
    ).read_bytes()
    start = whole.index(b"Exif\0\0") + 6
    end = start - 8 + int.from_bytes(whole[start - 8 : start - 6], "big")
    assert b"II*\0" in whole[start:end] or b"MM\0*" in whole[start:end]
    drawn = random.Random(5)
    seen = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(drawn.randint(1, 6)):
            damaged[drawn.randrange(start, end)] = drawn.randrange(256)
        (tmp_path / "damaged.jpg").write_bytes(bytes(damaged))
        focal = focal_from_exif(tmp_path / "damaged.jpg")
        assert focal is None or 0.2 * 60 <= focal <= 60 * 60
        seen.add(focal is None)
    assert seen == {True, False}


def test_a_file_that_is_no_photo_is_refused_with_its_name(tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    for name in ("notes.jpg", "gone.jpg"):
        with pytest.raises(InputError, match=name):
            focal_from_exif(tmp_path / name)
