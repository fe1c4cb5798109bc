"""View records of BrokenChairs-180K: pickled .npy files read without running anything they name, or .npz without pickles.

A released record is a pickled dict {pxy, is_visible, xyz} in which a class of trimesh is named, so that numpy alone cannot read
it, and a pickle may name any function to be called. `read_record` lets a pickle build arrays, numbers and containers only.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from prepare.errors import InputError

MAX_BYTES = 1 << 28
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


@dataclass(frozen=True)
class ViewRecord:
    """What stands beside a picture of a view."""

    pxy: Int[np.ndarray, "points 2"]  # (row, column)
    is_visible: Bool[np.ndarray, " points"]
    xyz: Float[np.ndarray, "rows columns xyz=3"]  # world; NaN where a cell has none
    alpha: (
        UInt8[np.ndarray, "rows columns"] | None
    )  # covered share of each cell x 255; None in released files
    exact: bool  # xyz is at the cells' middles and pxy by floor (ours); else as released


class _Refused(pickle.UnpicklingError):
    pass


class _NoCall(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise _Refused("it calls something that is no array")


class _Inert(metaclass=_NoCall):
    """Stands for every class we do not know: it can be made by `__new__` and filled, and never does anything."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _value: Any) -> None:
        pass

    def extend(self, _values: Any) -> None:
        pass


def _array(_subtype: Any, shape: Any, kind: Any) -> np.ndarray:
    """An empty array to be filled: of numpy's own class, whatever subclass the file names."""
    del shape, kind  # numpy's own pickles say (0,) and b'b' here: the state that follows decides
    return np.ndarray((0,), "b")


def _dtype(spec: Any, *_rest: Any) -> np.dtype:
    if not isinstance(spec, str) or len(spec) > 16:
        raise _Refused(f"a type named {spec!r}")
    return np.dtype(spec)


def _scalar(kind: Any, data: Any = None) -> Any:
    if (
        not isinstance(kind, np.dtype)
        or kind.hasobject
        or not isinstance(data, bytes)
        or len(data) != kind.itemsize
    ):
        raise _Refused("a number that is none")
    return np.frombuffer(data, kind)[0]


def _buffer(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, np.dtype) or kind.hasobject:
        raise _Refused("an array that is none")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise _Refused("bytes that are none")
    return text.encode("latin1")


def _made(_class: Any, _base: Any, _state: Any) -> _Inert:
    return _Inert.__new__(_Inert)


class RecordUnpickler(pickle.Unpickler):
    """Builds arrays, numpy's numbers, Python's containers and inert stand-ins; calls nothing that a file names.

    Of numpy's names only those that rebuild arrays, types and numbers are known, and each is a function of ours that checks
    its arguments (an array of a foreign subclass, as trimesh's TrackedArray, becomes a plain one). Any other name becomes the
    class `_Inert`: it may be made empty and given a state, which it forgets, but calling it (as `os.system` would be) is
    refused. Nothing is imported.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY and name == "_reconstruct":
            return _array
        if module in _NUMPY and name == "scalar":
            return _scalar
        if (module, name) in (("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")):
            return _buffer
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) in (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")):
            return _made
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to something outside itself")


def read_record(path: Path) -> ViewRecord:
    """The record in a .npz (ours) or .npy (released) file.

    Raises: InputError for a file that is missing, damaged, too large, that is no record, or that would call something.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such view record; copy the dataset again")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{path}: larger than {MAX_BYTES >> 20} MiB, which no view record is; copy the dataset again"
        )
    try:
        fields = _read_npz(path) if path.suffix == ".npz" else _read_npy(path)
    except _Refused as error:
        raise InputError(
            f"{path}: {error}, which no view record does: it is not opened; get the file anew"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: cannot be read as a view record ({error!r}); copy the dataset again"
        ) from error
    return _checked(path, fields)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _read_npy(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header: Any = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        _, _, kind = header(file)
        if not kind.hasobject:
            raise _Refused("it holds a plain array")
        found = _unpickled(file)
    if isinstance(found, np.ndarray) and found.size == 1:
        found = found.reshape(-1)[0]
    if not isinstance(found, dict):
        raise ValueError(f"a dict is wanted, got {type(found).__name__}")
    return found


def _unpickled(file: BinaryIO) -> Any:
    return RecordUnpickler(file, encoding="latin1").load()


def _checked(path: Path, fields: dict[str, Any]) -> ViewRecord:
    arrays = {name: fields.get(name) for name in ("pxy", "is_visible", "xyz")}
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise InputError(
                f"{path}: {name} must be an array of numbers, got {type(value).__name__}; copy the dataset again"
            )
    pxy, visible, xyz = arrays["pxy"], arrays["is_visible"], arrays["xyz"]
    assert pxy is not None
    assert visible is not None
    assert xyz is not None
    if (
        pxy.ndim != 2
        or pxy.shape[1] != 2
        or visible.shape != pxy.shape[:1]
        or xyz.ndim != 3
        or xyz.shape[2] != 3
    ):
        raise InputError(
            f"{path}: pxy (n, 2), is_visible (n) and xyz (rows, columns, 3) are wanted, got {pxy.shape}, {visible.shape}"
            f" and {xyz.shape}; copy the dataset again"
        )
    world = xyz.astype(np.float64)
    exact = bool(fields.get("exact", False))
    if not exact:
        world[(world == -1.0).all(axis=-1)] = np.nan  # an empty cell, as released
    alpha = fields.get("alpha")
    if alpha is not None and (
        not isinstance(alpha, np.ndarray) or alpha.dtype != np.uint8 or alpha.shape != xyz.shape[:2]
    ):
        raise InputError(f"{path}: alpha must be uint8 of {xyz.shape[:2]}; copy the dataset again")
    return ViewRecord(np.asarray(np.round(pxy), np.int64), visible.astype(bool), world, alpha, exact)
