"""The lens of a photo to inspect: whose it is, in each mode, for each shape, with and without EXIF data."""

from dataclasses import dataclass, replace

import pytest
import torch
from PIL import ExifTags, Image

from prepare.camera import Camera
from prepare.errors import InputError
from prepare.image import write_image
from prepare.undistort import Distortion
from splatad.inspector import Inspector
from splatad.lens import query_lens, reference_lens

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LENS = Camera(torch.eye(4), 300.0, 310.0, 190.0, 140.0, 400, 300)
BENT = Distortion(k1=-0.1)


@pytest.fixture(scope="module")
def reference(toy):
    """The toy with a landscape lens that bends."""
    views = tuple(replace(view, camera=LENS) for view in toy.reference.views)
    return replace(toy.reference, views=views, distortion=BENT)


def photo(path, width, height, film_mm=None):
    exif = Image.Exif()
    if film_mm is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = film_mm
    Image.new("RGB", (width, height), (200, 200, 200)).save(path, exif=exif)
    return path


def intrinsics(camera):
    return (camera.fl_x, camera.fl_y, camera.cx, camera.cy, camera.width, camera.height)


@dataclass(frozen=True)
class Case:
    size: tuple[int, int]
    film_mm: int | None
    wanted: tuple[float, float, float, float, int, int]
    fit_focal: bool
    bent: bool


# The reference's focal length is 305 px of 400 x 300, whose diagonal is 500 px: 26.4 mm of 43.27.
AUTO = {
    "its own shape": Case((800, 600), None, (600.0, 620.0, 380.0, 280.0, 800, 600), False, True),
    "turned by a quarter": Case((600, 800), None, (620.0, 600.0, 280.0, 380.0, 600, 800), False, True),
    "EXIF agrees": Case((800, 600), 26, (600.0, 620.0, 380.0, 280.0, 800, 600), False, True),
    "EXIF differs": Case((800, 600), 52, (1201.85, 1201.85, 400.0, 300.0, 800, 600), True, False),
    "EXIF differs a little": Case((800, 600), 28, (600.0, 620.0, 380.0, 280.0, 800, 600), False, True),
    "EXIF differs by 14 %": Case((800, 600), 30, (693.36, 693.36, 400.0, 300.0, 800, 600), True, False),
    "another shape": Case((900, 400), None, (675.0, 675.0, 450.0, 200.0, 900, 400), True, False),
    "another shape, upright": Case((400, 900), None, (675.0, 675.0, 200.0, 450.0, 400, 900), True, False),
    "another shape with EXIF": Case((600, 400), 50, (833.33, 833.33, 300.0, 200.0, 600, 400), True, False),
}


@pytest.mark.parametrize("case", AUTO.values(), ids=AUTO.keys())
def test_auto_takes_the_references_lens_else_exif_else_its_field_of_view(reference, tmp_path, case):
    lens = query_lens(reference, photo(tmp_path / "a.jpg", *case.size, case.film_mm))
    assert intrinsics(lens.camera) == pytest.approx(case.wanted, rel=1e-4)
    assert lens.fit_focal == case.fit_focal
    assert lens.distortion == (BENT if case.bent else None)
    assert lens.source


def test_an_upright_reference_gives_its_field_of_view_along_the_longer_side(reference, tmp_path):
    upright = replace(LENS, fl_x=310.0, fl_y=300.0, cx=140.0, cy=190.0, width=300, height=400)
    views = tuple(replace(view, camera=upright) for view in reference.views)
    lens = query_lens(replace(reference, views=views), photo(tmp_path / "a.jpg", 900, 400))
    assert lens.camera.fl_x == pytest.approx(675.0)


def test_reference_keeps_the_references_lens_whatever_exif_says_and_refuses_other_shapes(reference, tmp_path):
    lens = query_lens(reference, photo(tmp_path / "a.jpg", 800, 600, 52), "reference")
    assert (lens.camera.fl_x, lens.fit_focal, lens.distortion) == (600.0, False, BENT)
    wide = photo(tmp_path / "wide.jpg", 900, 400, 50)
    with pytest.raises(
        InputError, match=r"wide\.jpg: 900 x 400 px, but the reference's photos are 400 x 300"
    ):
        query_lens(reference, wide, "reference")


def test_exif_takes_the_files_focal_length_and_refuses_a_file_without(reference, tmp_path):
    lens = query_lens(reference, photo(tmp_path / "a.jpg", 800, 600, 26), "exif")
    assert lens.camera.fl_x == pytest.approx(26 / 43.2666 * 1000, rel=1e-5)
    assert lens.fit_focal
    assert lens.distortion is None
    with pytest.raises(InputError, match=r"b\.jpg: no focal length in its EXIF data; .*--lens free"):
        query_lens(reference, photo(tmp_path / "b.jpg", 800, 600), "exif")


def test_free_refines_the_best_guess_even_where_the_shape_fits(reference, tmp_path):
    plain = query_lens(reference, photo(tmp_path / "a.jpg", 800, 600), "free")
    assert intrinsics(plain.camera) == (600.0, 620.0, 380.0, 280.0, 800, 600)
    told = query_lens(reference, photo(tmp_path / "b.jpg", 800, 600, 26), "free")
    assert told.camera.fl_x == pytest.approx(26 / 43.2666 * 1000, rel=1e-5)
    other = query_lens(reference, photo(tmp_path / "c.jpg", 900, 400), "free")
    assert other.camera.fl_x == pytest.approx(675.0)
    assert plain.fit_focal
    assert told.fit_focal
    assert other.fit_focal
    assert plain.distortion is None


def test_a_lens_fits_two_shapes_only():
    assert reference_lens(LENS, 400, 300) == LENS
    assert reference_lens(LENS, 300, 400) is not None
    for width, height in ((400, 200), (300, 301), (400, 320)):
        assert reference_lens(LENS, width, height) is None


def test_a_photo_of_another_shape_is_inspected_with_its_lens_to_be_found(toy, tmp_path, monkeypatch):
    """The part in a wide frame of the same lens: the guess from the field of view is off, and asked to be refined."""
    import splatad.finder

    asked = []
    real = splatad.finder.locate

    def spy(*arguments, **options):
        asked.append((options["config"].levenberg.focal, arguments[5]))
        return real(*arguments, **options)

    monkeypatch.setattr(splatad.finder, "locate", spy)
    camera = replace(toy.cameras(6, seed=51)[1], width=150, cx=75.0)
    write_image(tmp_path / "wide.png", toy.photo(camera).rgb)
    inspection = Inspector(toy.loaded).inspect(tmp_path / "wide.png")
    ((focal, lens),) = asked
    assert focal
    assert (lens.width, lens.height) == (100, 67)
    assert lens.fl_x == pytest.approx(138.9, rel=1e-3)  # the reference's field of view on the longer side
    assert inspection.lens is not None
    assert inspection.lens.source == "the reference's field of view as a guess"
    asked.clear()
    write_image(tmp_path / "own.png", toy.photo(toy.cameras(6, seed=51)[1]).rgb)
    inspection = Inspector(toy.loaded).inspect(tmp_path / "own.png")
    assert [focal for focal, _ in asked] == [False]
    assert inspection.lens is not None
    assert not inspection.lens.fit_focal


def test_read_takes_the_lens_that_was_asked_for(toy, tmp_path):
    path = photo(tmp_path / "a.jpg", 100, 100, 36)
    by_mode = {
        mode: Inspector(toy.loaded, lens_mode=mode).read(path).camera for mode in ("reference", "exif")
    }
    assert by_mode["reference"].fl_x == pytest.approx(138.9)
    assert by_mode["exif"].fl_x == pytest.approx(36 / 43.2666 * 100 * 2**0.5, rel=1e-5)
