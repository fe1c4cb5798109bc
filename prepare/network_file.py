"""Trained networks on disk: one .safetensors file whose header says, as JSON, what it holds. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prepare.atomic_write import write_with
from prepare.errors import InputError

_ENTRY = "splatad"  # one entry: the order of several is drawn anew by every process, and the same content gives the same bytes


def write_network(path: Path, kind: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` and the plain `values`, atomically; `kind` names the format and its version.

    Raises: ValueError for a value that is no number JSON knows (NaN).
    """
    header = {_ENTRY: json.dumps({"format": kind, **values}, allow_nan=False)}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_with(path, lambda temporary: save_file(held, temporary, metadata=header))


def read_network(path: Path, kind: str, advice: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The values and the tensors that `write_network` wrote. `advice` says what to do where the file cannot serve.

    Raises: InputError where it is missing, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY, "{}")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as weights ({' '.join(str(error).split())[:120]}); {advice}"
        ) from error
    try:
        values: dict[str, Any] = json.loads(text)
        found = values.get("format", "none")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: its header cannot be read ({error}); {advice}") from error
    if found != kind:
        raise InputError(
            f"{path}: not weights of this detector (format {found!r}, expected {kind!r}); {advice}"
        )
    return values, tensors
