"""Shapes with reference views, and photos to compare with them, packed into plain .npy files: what `detect.cmt` learns from.

S shapes, N grey views of each, Q photos; px = 256, cells of 8 px, P surface points a shape. Cameras are OpenCV
world-to-camera matrices; the shape is within [-1, 1], `up` says which axis is up. `pack.json` describes the rest, and a
folder that has it is complete. Arrays are opened as memory maps: a set may be larger than the memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from prepare.atomic_write import write_json, write_text, write_with
from prepare.errors import InputError, UsageError

FORMAT = 1
PACK = "pack.json"
TYPES = ("none", "position", "rotation", "broken", "swapped", "missing")
SPLITS = ("train", "val", "test")
CELL_PX = 8
_SIZES = "sizes.json"


@dataclass(frozen=True)
class PairSizes:
    """How large the arrays are."""

    shapes: int
    views: int  # a shape
    queries: int  # photos
    points: int = 2000  # a shape
    px: int = 256  # width and height of every picture
    aided: bool = False  # whether each photo has a render of its shape from near its camera

    @property
    def cells(self) -> int:
        return self.px // CELL_PX

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of every array, by its file's stem."""
        s, n, q, px, cells, p = self.shapes, self.views, self.queries, self.px, self.cells, self.points
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "views": ("uint8", (s, n, px, px)),  # grey on white
            "view_alpha": ("uint8", (s, n, cells, cells)),  # covered share of the cell x 255
            "view_xyz": (
                "float32",
                (s, n, cells, cells, 3),
            ),  # surface at the cell's middle; NaN: none in the cell
            "view_camera": ("float64", (s, n, 4, 4)),
            "view_K": ("float64", (s, n, 3, 3)),
            "point_pxy": ("int16", (s, n, p, 2)),  # (row, column) by floor
            "point_visible": ("bool", (s, n, p)),
            "queries": ("uint8", (q, px, px, 3)),  # on white
            "query_alpha": ("uint8", (q, cells, cells)),
            "query_shape": ("int32", (q,)),
            "query_label": ("uint8", (q,)),  # 1: anomalous
            "query_type": ("uint8", (q,)),  # index into `types`
            "query_part": ("int16", (q,)),  # index into `parts`, -1: none
            "query_box": ("float32", (q, 4)),  # cx cy w h in [0, 1]; NaN where normal
            "query_change": ("uint8", (q, cells, cells)),  # share of the cell that differs x 255
            "query_change_mask": ("uint8", (q, px, px // 8)),  # the same per pixel, np.packbits
            "query_twin": (
                "int32",
                (q,),
            ),  # the unmodified shape under the same camera, material and light; -1: none
            "query_camera": ("float64", (q, 4, 4)),  # NaN where unknown
            "query_K": ("float64", (q, 3, 3)),
        }
        if self.aided:
            found |= {
                "aided": ("uint8", (q, px, px)),
                "aided_alpha": ("uint8", (q, cells, cells)),
                "aided_xyz": ("float32", (q, cells, cells, 3)),
                "aided_camera": ("float64", (q, 4, 4)),
            }
        return found


class ShapePairs:
    """A packed set, open for reading; every array is an attribute of its file's name (`pairs.query_box`)."""

    views: np.ndarray
    view_alpha: np.ndarray
    view_xyz: np.ndarray
    view_camera: np.ndarray
    view_K: np.ndarray
    point_pxy: np.ndarray
    point_visible: np.ndarray
    queries: np.ndarray
    query_alpha: np.ndarray
    query_shape: np.ndarray
    query_label: np.ndarray
    query_type: np.ndarray
    query_part: np.ndarray
    query_box: np.ndarray
    query_change: np.ndarray
    query_change_mask: np.ndarray
    query_twin: np.ndarray
    query_camera: np.ndarray
    query_K: np.ndarray
    aided: np.ndarray | None = None
    aided_alpha: np.ndarray | None = None
    aided_xyz: np.ndarray | None = None
    aided_camera: np.ndarray | None = None

    def __init__(self, folder: Path, header: Mapping[str, Any], sizes: PairSizes) -> None:
        self.folder, self.sizes = folder, sizes
        self.up: str = header["up"]
        self.shapes: tuple[str, ...] = tuple(header["shapes"])
        self.splits: dict[str, tuple[int, ...]] = {k: tuple(v) for k, v in header["splits"].items()}
        self.types: tuple[str, ...] = tuple(header["types"])
        self.parts: tuple[str, ...] = tuple(header["parts"])
        self.source: dict[str, Any] = dict(header["source"])

    @classmethod
    def open(cls, folder: Path) -> ShapePairs:
        """The set in `folder`, its arrays as read-only memory maps.

        Raises: InputError where the folder is no packed set, is incomplete, or contradicts itself.
        """
        header = _read_header(folder)
        aided = (folder / "aided.npy").is_file()
        queries = _shape_on_disk(folder / "query_label.npy")
        sizes = PairSizes(
            len(header["shapes"]),
            header["views"],
            queries[0] if queries else 0,
            header["points"],
            header["px"],
            aided,
        )
        if header["cells"] != sizes.cells:
            raise InputError(
                f"{folder / PACK}: cells of {CELL_PX} px are wanted, got {header['cells']} across {sizes.px} px;"
                " pack the data again"
            )
        pairs = cls(folder, header, sizes)
        for name, (dtype, shape) in sizes.arrays().items():
            setattr(pairs, name, _open_array(folder / f"{name}.npy", dtype, shape))
        pairs._check()
        return pairs

    @cached_property
    def _split_of_shape(self) -> np.ndarray:
        found = np.full(len(self.shapes), -1, np.int8)
        for number, split in enumerate(SPLITS):
            found[list(self.splits[split])] = number
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of that file name: `pairs["query_box"]`."""
        array = getattr(self, name)
        assert isinstance(array, np.ndarray), f"{self.folder}: no {name}"
        return array

    @property
    def view_count(self) -> int:
        """Views of each shape."""
        return self.sizes.views

    @property
    def px(self) -> int:
        """Width and height of every picture."""
        return self.sizes.px

    @property
    def columns(self) -> int:
        """Cells along a picture's side."""
        return self.sizes.cells

    @property
    def has_aided(self) -> bool:
        """Whether there is a render of the unmodified shape at about each photo's camera."""
        return self.sizes.aided

    def queries_of(self, split: str) -> Int[np.ndarray, " photos"]:
        """Indices of the photos of a split's shapes, ascending.

        Raises: InputError where there is no such split.
        """
        if split not in SPLITS:
            raise InputError(f"{self.folder}: no split {split}; there are {', '.join(SPLITS)}")
        return np.flatnonzero(self._split_of_shape[self.query_shape] == SPLITS.index(split))

    def change_mask(self, query: int | np.integer) -> Bool[np.ndarray, "px px"]:
        """Pixels where a photo differs in geometry from the unmodified shape."""
        return np.unpackbits(self.query_change_mask[query], axis=-1).astype(bool)

    def _check(self) -> None:
        where = self.folder
        count = len(self.shapes)
        seen: set[int] = set()
        for split in SPLITS:
            indices = self.splits.get(split, ())
            if split not in self.splits or any(not 0 <= i < count for i in indices):
                raise InputError(
                    f"{where / PACK}: split {split!r} must list shape indices below {count}; pack the data again"
                )
            if seen & set(indices):
                raise InputError(f"{where / PACK}: a shape is in two splits; pack the data again")
            seen |= set(indices)
        for name, least, limit in (
            ("query_shape", 0, count),
            ("query_type", 0, len(self.types)),
            ("query_part", -1, len(self.parts)),
            ("query_twin", -1, self.sizes.queries),
        ):
            values = getattr(self, name)
            if values.size and (values.min() < least or values.max() >= limit):
                raise InputError(
                    f"{where / name}.npy: values from {least} to {limit - 1} are wanted, got {values.min()} to"
                    f" {values.max()}; pack the data again"
                )
        if ((self.query_label != 0) != (self.query_type != 0)).any():
            raise InputError(f"{where / 'query_label'}.npy: labels and types disagree; pack the data again")


class PairWriter:
    """Writes a packed set: rows in any order, from several processes, into FOLDER.partial, which `finish` renames.

    What a stopped run wrote is found again: `done` says which pieces of work are complete.
    """

    def __init__(self, folder: Path, sizes: PairSizes) -> None:
        """Raises: UsageError where `folder` is there already, or a partial one has other sizes; InputError for the disk."""
        self.folder, self.sizes = folder, sizes
        self.partial = folder.with_name(folder.name + ".partial")
        if sizes.px % CELL_PX or min(sizes.shapes, sizes.views, sizes.queries, sizes.points) < 1:
            raise UsageError(
                f"{folder}: sizes must be at least 1 and px a multiple of {CELL_PX}, got {sizes}"
            )
        if folder.exists():
            raise UsageError(f"{folder}: is there already, and nothing is overwritten; choose another name")
        self._arrays: dict[str, np.ndarray] = {}
        marker = self.partial / _SIZES
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
            if found != asdict(sizes):
                raise UsageError(
                    f"{self.partial}: was begun with other sizes ({found}); delete it or choose another name"
                )
        else:
            if self.partial.exists() and any(p.suffix != ".npy" for p in self.partial.iterdir()):
                raise UsageError(f"{self.partial}: holds files that are not ours; choose another name")
            try:
                self.partial.mkdir(parents=True, exist_ok=True)
                for name, (dtype, shape) in sizes.arrays().items():
                    np.lib.format.open_memmap(self._path(name), "w+", np.dtype(dtype), shape).flush()
            except OSError as error:
                raise InputError(
                    f"{self.partial}: cannot be written ({error.strerror or error}); free some space or choose another folder"
                ) from error
            write_json(marker, asdict(sizes))

    def _path(self, name: str) -> Path:
        return self.partial / f"{name}.npy"

    def array(self, name: str) -> np.ndarray:
        """The whole array `name`, writable."""
        if name not in self._arrays:
            self._arrays[name] = np.lib.format.open_memmap(self._path(name), "r+")
        return self._arrays[name]

    def put(self, index: int, **values: Any) -> None:
        """Set row `index` of the named arrays; shapes must fit, kinds must not lose anything but precision."""
        for name, value in values.items():
            row = np.asarray(value)
            target = self.array(name)
            assert row.shape == target.shape[1:], f"{name}: {row.shape} into {target.shape[1:]}"
            assert np.can_cast(row.dtype, target.dtype, "same_kind") or row.dtype.kind in "iub", name
            target[index] = row

    def done(self, piece: str) -> bool:
        """Whether `mark` was called for this piece of work, now or in an earlier run."""
        return (self.partial / f"{piece}.done").is_file()

    def mark(self, piece: str, note: str = "") -> None:
        """Remember that a piece of work is complete, with a note."""
        write_text(self.partial / f"{piece}.done", note)

    def note(self, piece: str) -> str:
        """What was noted of a complete piece."""
        return (self.partial / f"{piece}.done").read_text(encoding="utf-8")

    def finish(
        self,
        *,
        up: str,
        shapes: Sequence[str],
        splits: Mapping[str, Sequence[int]],
        parts: Sequence[str],
        source: Mapping[str, Any],
        keep_shapes: Bool[np.ndarray, " shapes"] | None = None,
        keep_queries: Bool[np.ndarray, " queries"] | None = None,
    ) -> ShapePairs:
        """The set, complete at its place. Rows not kept (damaged samples) are taken out and indices follow.

        `shapes`, `splits` are as before the taking out; photos of a shape that is not kept go with it.
        """
        sizes = self.sizes
        kept_s = np.ones(sizes.shapes, bool) if keep_shapes is None else np.asarray(keep_shapes, bool)
        kept_q = np.ones(sizes.queries, bool) if keep_queries is None else np.asarray(keep_queries, bool)
        kept_q = kept_q & kept_s[np.clip(self.array("query_shape"), 0, sizes.shapes - 1)]
        if not kept_s.any() or not kept_q.any():
            raise InputError(f"{self.folder}: no shape with a photo is left; look at the samples named above")
        new_s, new_q = np.cumsum(kept_s) - 1, np.cumsum(kept_q) - 1
        whole = bool(kept_s.all() and kept_q.all())
        if not whole:
            twin = np.asarray(self.array("query_twin"))
            kept_twin = (twin >= 0) & kept_q[np.clip(twin, 0, None)]
            indices = {
                "query_shape": new_s[self.array("query_shape")].astype(np.int32),
                "query_twin": np.where(kept_twin, new_q[np.clip(twin, 0, None)], -1).astype(np.int32),
            }
            for name in sizes.arrays():
                kept = kept_s if name.startswith(("view", "point")) else kept_q
                rows = indices.get(name, self.array(name))
                self._replace(name, rows, np.flatnonzero(kept))
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        self._arrays.clear()
        header = {
            "format": FORMAT, "px": sizes.px, "cells": sizes.cells, "views": sizes.views, "points": sizes.points,
            "up": up, "shapes": [name for name, kept in zip(shapes, kept_s, strict=True) if kept],
            "splits": {split: [int(new_s[i]) for i in splits.get(split, ()) if kept_s[i]] for split in SPLITS},
            "types": list(TYPES), "parts": list(parts), "source": dict(source),
        }  # fmt: skip
        write_json(self.partial / PACK, header)
        ShapePairs.open(self.partial)
        for path in (*self.partial.glob("*.done"), self.partial / _SIZES):
            path.unlink(missing_ok=True)
        self.partial.rename(self.folder)
        return ShapePairs.open(self.folder)

    def _replace(self, name: str, rows: np.ndarray, chosen: np.ndarray) -> None:
        """Write the chosen rows as the whole array."""

        def write(temporary: Path) -> None:
            shape = (len(chosen), *rows.shape[1:])
            target = np.lib.format.open_memmap(temporary, "w+", rows.dtype, shape)
            for start in range(0, len(chosen), 64):
                target[start : start + 64] = rows[chosen[start : start + 64]]
            target.flush()

        write_with(self._path(name), write)
        self._arrays.pop(name, None)


def cell_share(mask: np.ndarray, cell: int = CELL_PX) -> np.ndarray:
    """Mean of each `cell` x `cell` block of a mask (or of values in [0, 1]), times 255 and rounded, as uint8."""
    height, width = mask.shape[0] // cell, mask.shape[1] // cell
    share = mask.astype(np.float32).reshape(height, cell, width, cell).mean(axis=(1, 3))
    return np.round(255 * share).astype(np.uint8)


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / PACK
    if not path.is_file():
        raise InputError(
            f"{folder}: no {PACK} here, so no packed shapes; make them with `splatad generate chairs` or"
            " `splatad prepare broken-chairs`"
        )
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise InputError(
                f"{path}: format {FORMAT} is wanted, got {header['format']}; pack the data again"
            )
        for key in ("px", "cells", "views", "points"):
            if not isinstance(header[key], int) or header[key] < 1:
                raise InputError(
                    f"{path}: {key} must be a whole number above 0, got {header[key]!r}; pack the data again"
                )
        for key, kind in (
            ("shapes", list),
            ("splits", dict),
            ("types", list),
            ("parts", list),
            ("source", dict),
            ("up", str),
        ):
            if not isinstance(header[key], kind):
                raise InputError(
                    f"{path}: {key} must be a {kind.__name__}, got {header[key]!r}; pack the data again"
                )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as the description of packed shapes ({error!r}); pack the data again"
        ) from error
    return dict(header)


def _shape_on_disk(path: Path) -> tuple[int, ...]:
    return tuple(_load(path).shape)


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise InputError(f"{path}: is not there; pack the data again") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array ({error}); pack the data again") from error


def _open_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    array = _load(path)
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise InputError(
            f"{path}: {dtype} of {shape} is wanted, got {array.dtype} of {array.shape}; pack the data again"
        )
    return array
