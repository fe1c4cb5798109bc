"""Encoded references on disk: a second photo of the same part costs only its own features."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from detect.cmt.model import Cells
from detect.cmt.predict import EncodedReference
from detect.cmt.reference import ReferenceViews
from prepare.atomic_write import write_with

FORMAT = "splatad-cmt-encoded-1"
_VIEWS = ("pictures", "share", "xyz", "world_to_cam", "intrinsics")
_CELLS = ("features", "matching", "cell_share")


def save_encoded(path: Path, encoded: EncodedReference, key: str) -> None:
    """Write views and features to one .safetensors file, atomically; `key` says of what and by which network."""
    tensors = {name: getattr(encoded.views, name) for name in _VIEWS}
    cells = encoded.cells
    tensors |= dict(zip(_CELLS, (cells.features, cells.matching, cells.share), strict=True))
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_with(path, lambda temporary: save_file(held, temporary, metadata={"format": FORMAT, "key": key}))


def load_encoded(path: Path, key: str) -> EncodedReference | None:
    """What `save_encoded` wrote for `key`, on the CPU; None where it is not there or cannot be used: then encode anew."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"format": FORMAT, "key": key}:
                return None
            views = ReferenceViews(*(file.get_tensor(name) for name in _VIEWS))
            features, matching, share = (file.get_tensor(name) for name in _CELLS)
    except (OSError, SafetensorError):
        return None
    return EncodedReference(Cells(features, matching, share, views.xyz), views)
