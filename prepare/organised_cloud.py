"""Organised point clouds: an image of (x, y, z), one point a pixel, (0, 0, 0) where the sensor measured nothing.

H x W pixels; units are metres throughout.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Bool, Float

from prepare.atomic_write import write_with
from prepare.errors import InputError

MAX_PIXELS = 25_000_000
FARTHEST_M = 20.0  # a median distance beyond it is taken for another unit


def measured(xyz: Float[np.ndarray, "h w xyz=3"]) -> Bool[np.ndarray, "h w"]:
    """Where there is a point: all three coordinates differ from 0.

    "Any coordinate" would be wrong: the background of a prepared Eyecandies cloud is one point with x = 0.
    """
    return (xyz != 0).all(axis=-1)


def read_xyz(path: Path) -> Float[np.ndarray, "h w xyz=3"]:
    """The float32 points of a TIFF of H x W x 3 floating-point numbers, metres.

    Raises: InputError for a file that is missing, truncated or no TIFF; for other channels or types; for NaN or infinity; for an
    empty cloud; for three equal channels (a depth image saved as colour); for millimetres. Nothing is decoded before its size
    was accepted.
    """
    with _series(path) as series:
        xyz = np.asarray(series.asarray(), dtype=np.float32)
    check_xyz(xyz, str(path))
    return xyz


def xyz_size(path: Path) -> tuple[int, int]:
    """Height and width in px, from the header alone. Raises: InputError as `read_xyz`, less what only the points show."""
    with _series(path) as series:
        return int(series.shape[0]), int(series.shape[1])


@contextmanager
def _series(path: Path) -> Iterator[tifffile.TiffPageSeries]:
    """The image of a TIFF whose header was accepted; whatever goes wrong inside the block becomes an InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of points; check the path")
    try:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise InputError(f"{path}: is a TIFF without an image; export it again")
            series = tiff.series[0]
            shape, kind = series.shape, np.dtype(series.dtype)
            if len(shape) != 3 or shape[2] != 3:
                raise InputError(
                    f"{path}: height x width x 3 channels (x, y, z) are wanted,"
                    f" got {' x '.join(map(str, shape))}; save the points so"
                )
            if kind.kind != "f":
                raise InputError(
                    f"{path}: floating-point x, y, z in metres are wanted, got {kind.name} channels (a picture?);"
                    " save the points as float32"
                )
            if shape[0] * shape[1] > MAX_PIXELS:
                raise InputError(
                    f"{path}: is too large, {shape[1]} x {shape[0]} with a limit of {MAX_PIXELS} pixels; scale it down"
                )
            yield series
    except PermissionError as error:
        raise InputError(f"{path}: cannot be opened (permission denied); make it readable") from error
    except (
        tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error, zlib.error,
        MemoryError, OverflowError, AttributeError,
    ) as error:  # fmt: skip
        # What tifffile raises for damaged files depends on where the damage lies.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: is no TIFF, damaged or truncated ({reason}); copy or export it again"
        ) from error


def check_xyz(xyz: Float[np.ndarray, "h w xyz=3"], where: str) -> None:
    """Raises: InputError where the three channels cannot be points in metres."""
    finite = np.isfinite(xyz).all(axis=-1)
    if not finite.all():
        raise InputError(
            f"{where}: {int((~finite).sum())} pixels hold NaN or infinity; write (0, 0, 0) where nothing was measured"
        )
    points = xyz[measured(xyz)]
    if not len(points):
        raise InputError(f"{where}: the cloud is empty, no pixel has x, y and z; record the sample again")
    if (points[:, 0] == points[:, 1]).all() and (points[:, 1] == points[:, 2]).all():
        raise InputError(f"{where}: three equal channels, a depth image; x, y and z of each pixel are wanted")
    middle = float(np.median(np.linalg.norm(points, axis=1)))
    if middle > FARTHEST_M:
        raise InputError(
            f"{where}: points lie {middle:.0f} units away, not metres; divide millimetres by 1000"
        )


def write_xyz(path: Path, xyz: Float[np.ndarray, "h w xyz=3"], *, compress: bool = True) -> None:
    """Write a float32 TIFF of H x W x 3 atomically; deflated unless told not to.

    Raises: InputError where the file cannot be written.
    """
    kind = "zlib" if compress else None
    level = {"level": 1} if compress else None
    values = np.ascontiguousarray(xyz, dtype=np.float32)
    write_with(
        path,
        lambda temporary: tifffile.imwrite(
            temporary,
            values,
            photometric="rgb",
            compression=kind,
            compressionargs=level,
            metadata=None,
            software="splatad",
        ),
    )
