"""Phones' HEIC photos turned into JPEG files, through the optional plugin pi-heif (or pillow-heif)."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from prepare.atomic_write import write_bytes
from prepare.errors import InputError, MissingPartError
from prepare.image import MAX_PIXELS

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_PLUGINS = ("pi_heif", "pillow_heif")  # the former only decodes, and brings no GPL encoder
_QUALITY = 95


def convert_heic(photo: Path, target: Path) -> Path:
    """`target`, a JPEG of the photo, upright, with its EXIF data; one that is younger than the photo is left alone.

    Raises: MissingPartError without a plugin; InputError for a photo that cannot be read.
    """
    if target.is_file() and target.stat().st_mtime_ns >= photo.stat().st_mtime_ns:
        return target
    plugin = _plugin(photo)
    try:
        plugin.register_heif_opener()
        with Image.open(photo, formats=("HEIF",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{photo}: is too large, {image.width} x {image.height} with a limit of {MAX_PIXELS} pixels; scale it down"
                )
            exif = image.getexif()
            upright = ImageOps.exif_transpose(image).convert("RGB")
            exif.pop(0x0112, None)  # the turn is done
            buffer = io.BytesIO()
            upright.save(buffer, format="JPEG", quality=_QUALITY, subsampling=0, exif=exif.tobytes())
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise InputError(f"{photo}: is no HEIC photo that can be read ({reason}); save it as JPEG") from error
    write_bytes(target, buffer.getvalue())
    return target


def _plugin(photo: Path) -> Any:
    for name in _PLUGINS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingPartError(
        f"{photo}: reading HEIC needs a plugin; pip install pi-heif, or save the photos as JPEG (on an iPhone:"
        " Settings > Camera > Formats > Most Compatible)"
    )
