"""A pack of shapes and photos on disk, as training reads it: plain .npy arrays, opened as memory maps.

The layout is `prepare.shape_pairs`'s. Names: `views*`, `point*` by shape, `query*` and `aided*` by photo.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detect.cmt.encoder import CELL_PX
from prepare.errors import InputError

_NEEDED = {
    "views": 4, "view_alpha": 4, "view_xyz": 5, "view_camera": 4, "view_K": 4, "point_pxy": 4, "point_visible": 3,
    "queries": 4, "query_alpha": 3, "query_shape": 1, "query_label": 1, "query_type": 1, "query_part": 1,
    "query_box": 2, "query_change": 3, "query_twin": 1, "query_camera": 3, "query_K": 3,
}  # fmt: skip
_AIDED = {"aided": 3, "aided_alpha": 3, "aided_xyz": 4, "aided_camera": 3}


@dataclass(frozen=True)
class Pack:
    """The arrays by name, and what pack.json says."""

    folder: Path
    px: int
    arrays: Mapping[str, np.ndarray]
    splits: Mapping[str, Sequence[int]]  # of shapes
    types: Sequence[str]  # of defects; the first is "none"
    parts: Sequence[str]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def views(self) -> int:
        """Views of each shape."""
        return int(self["views"].shape[1])

    @property
    def columns(self) -> int:
        """Cells along a picture's side."""
        return self.px // CELL_PX

    @property
    def has_aided(self) -> bool:
        """Whether there is a render of the unmodified shape at about each photo's camera."""
        return "aided" in self.arrays

    def queries_of(self, split: str) -> np.ndarray:
        """The photos of the shapes of `split`, rising.

        Raises: InputError where there is no such split.
        """
        if split not in self.splits:
            raise InputError(f"{self.folder}: no split {split}; there are {', '.join(sorted(self.splits))}")
        return np.flatnonzero(np.isin(self["query_shape"], np.asarray(self.splits[split], dtype=np.int64)))


def open_pack(folder: Path) -> Pack:
    """The pack in `folder`.

    Raises: InputError where a file is missing, damaged, or does not fit the others.
    """
    head = folder / "pack.json"
    try:
        about = json.loads(head.read_text(encoding="utf-8"))
        if about["format"] != 1:
            raise InputError(f"{head}: format {about['format']}, this version reads 1; make the pack again")
        px, cells = int(about["px"]), int(about["cells"])
        splits = {name: list(map(int, shapes)) for name, shapes in about["splits"].items()}
        types, parts = list(about["types"]), list(about["parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{head}: cannot be read ({error}); give the folder of a pack") from error
    if px != cells * CELL_PX:
        raise InputError(
            f"{head}: {px} px in {cells} cells; cells are {CELL_PX} px wide, make the pack again"
        )
    arrays = {name: _array(folder, name, dimensions) for name, dimensions in _NEEDED.items()}
    if (folder / "aided.npy").exists():
        arrays |= {name: _array(folder, name, dimensions) for name, dimensions in _AIDED.items()}
    shapes, photos = len(arrays["views"]), len(arrays["queries"])
    for name, array in arrays.items():
        wanted = photos if name.startswith(("query", "queries", "aided")) else shapes
        if len(array) != wanted:
            raise InputError(
                f"{folder}/{name}.npy: {len(array)} rows, expected {wanted}; make the pack again"
            )
    if photos and not 0 <= int(arrays["query_shape"].min()) <= int(arrays["query_shape"].max()) < shapes:
        raise InputError(f"{folder}/query_shape.npy: names shapes that are not there; make the pack again")
    seen: set[int] = set()
    for name, own in splits.items():
        if seen & set(own):
            raise InputError(
                f"{head}: split {name} shares shapes with another; splits must be disjoint in shapes"
            )
        seen |= set(own)
    return Pack(folder, px, arrays, splits, types, parts)


def _array(folder: Path, name: str, dimensions: int) -> np.ndarray:
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make the pack again") from error
    if array.ndim != dimensions:
        raise InputError(f"{path}: {array.ndim} dimensions, expected {dimensions}; make the pack again")
    return array
