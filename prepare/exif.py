"""What a camera wrote about its lens into its photo's EXIF data."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags

from prepare.image import MAX_PIXELS, _opened

FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)  # 43.27 mm
LEAST_FOCAL, MOST_FOCAL = (
    0.2,
    60.0,
)  # in longer sides of the photo: 136 degrees across, and 1 degree; beyond is junk

_UNIT_MM = {
    2: 25.4,
    3: 10.0,
    4: 1.0,
    5: 0.001,
}  # FocalPlaneResolutionUnit; 4 and 5 are no standard, but are written
_INCH = 2  # the standard's default
_TAG = ExifTags.Base


def focal_from_exif(path: Path) -> float | None:
    """Focal length in px at the file's stored size, > 0 (either way up: pixels are square); None where EXIF has none.

    From FocalLengthIn35mmFilm, a focal length that has the photo's diagonal angle of view on 36 x 24 mm film, whole mm
    (2 % at 24 mm); else from FocalLength and FocalPlaneXResolution, px per unit on the sensor for a photo
    PixelXDimension wide, scaled where the file was resized since. What is missing, zero, not a number or not possible
    counts as not there, and so does what stands behind a PNG's pixels. A photo cropped afterwards keeps the tags of the
    whole one, so the value may be off.
    Raises: InputError as `image_size`.
    Source: the tags, CIPA DC-008 (Exif 2.32) 4.6.5; the diagonal, CIPA DCG-001 (guideline for noting specifications).
    """
    found = _tags(path)
    if found is None:
        return None
    _, tags, (width, height) = found
    for focal in (_from_film(tags, width, height), _from_sensor(tags, width, height)):
        if focal is not None and LEAST_FOCAL <= focal / max(width, height) <= MOST_FOCAL:
            return focal
    return None


def lens_from_exif(path: Path) -> str | None:
    """Camera and focal length as EXIF tells them, the same for photos through one lens at one zoom; None where it
    tells neither.

    Raises: InputError as `image_size`.
    """
    found = _tags(path)
    if found is None:
        return None
    base, tags, _ = found
    names = [" ".join(str(base.get(tag, "")).split("\0")[0].split()) for tag in (_TAG.Make, _TAG.Model)]
    lengths = [_positive(tags.get(tag)) for tag in (_TAG.FocalLength, _TAG.FocalLengthIn35mmFilm)]
    if not any(names) and not any(lengths):
        return None
    return " ".join([*names, *("?" if length is None else f"{length:.2f}" for length in lengths)]).strip()


def _tags(path: Path) -> tuple[Mapping[int, Any], Mapping[int, Any], tuple[int, int]] | None:
    """The file's main EXIF tags, those of its EXIF block and its stored size in px; None where it has none to trust."""
    with _opened(path, MAX_PIXELS) as image:
        # As in `image_size`: a PNG would be decoded whole to look for EXIF data behind its pixels.
        if image.format == "PNG" and "exif" not in image.info:
            return None
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow tells of every damaged tag
                exif = image.getexif()
                return dict(exif), dict(exif.get_ifd(ExifTags.IFD.Exif)), image.size
        except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError, struct.error):
            return None  # the photo may be good though its EXIF data is damaged


def _from_film(tags: Mapping[int, Any], width: int, height: int) -> float | None:
    film_mm = _positive(tags.get(_TAG.FocalLengthIn35mmFilm))
    return None if film_mm is None else film_mm / FILM_DIAGONAL_MM * math.hypot(width, height)


def _from_sensor(tags: Mapping[int, Any], width: int, height: int) -> float | None:
    focal_mm = _positive(tags.get(_TAG.FocalLength))
    density = _positive(tags.get(_TAG.FocalPlaneXResolution))
    unit = _positive(tags.get(_TAG.FocalPlaneResolutionUnit, _INCH))
    if focal_mm is None or density is None or unit not in _UNIT_MM:
        return None
    taken = [_positive(tags.get(tag)) for tag in (_TAG.ExifImageWidth, _TAG.ExifImageHeight)]
    longest = max((size for size in taken if size is not None), default=float(max(width, height)))
    return focal_mm * density / _UNIT_MM[int(unit)] * max(width, height) / longest


def _positive(value: object) -> float | None:
    """The tag's value where it is one number above 0; None for anything else that a file may hold in its place."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
