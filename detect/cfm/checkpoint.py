"""Trained CFM on disk: one .safetensors file with both networks, the standardisation, the features' and the scales' settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detect.cfm.absolute import Absolute, as_json, from_json
from detect.cfm.mapping import MappingConfig, MappingPair
from prepare.atomic_write import write_with
from prepare.errors import InputError

FORMAT = "splatad-cfm-1"


@dataclass(frozen=True)
class Checkpoint:
    """What a training leaves."""

    pair: MappingPair  # in eval mode
    features: Mapping[str, Any]  # the FeatureConfig, as plain values
    scales: Mapping[str, Absolute]  # by fusion; empty where no good photo was kept from the training
    about: Mapping[str, Any]  # class, recipe, history, versions: plain values


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it atomically; the same content gives the same bytes."""
    values = {
        "format": FORMAT,
        "mapping": asdict(checkpoint.pair.config),
        "features": dict(checkpoint.features),
        "scales": {fusion: as_json(scale) for fusion, scale in checkpoint.scales.items()},
        "about": dict(checkpoint.about),
    }
    # One entry: the order of several is drawn anew by every process.
    header = {"splatad": json.dumps(values, allow_nan=False)}
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.pair.state_dict().items()}
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load_checkpoint(path: Path) -> Checkpoint:
    """What `save_checkpoint` wrote.

    Raises: InputError where the file is missing, damaged, of another kind, or its tensors are not this network's.
    """
    wrong = "give the .safetensors file that `splatad train cfm` wrote"
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("splatad", "{}")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as weights ({' '.join(str(error).split())[:120]}); {wrong}"
        ) from error
    try:
        header = json.loads(text)
        found = header.get("format", "none")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: its header cannot be read ({error}); train it again") from error
    if found != FORMAT:
        raise InputError(
            f"{path}: not weights of this detector (format {found!r}, expected {FORMAT!r}); {wrong}"
        )
    try:
        pair = MappingPair(MappingConfig(**header["mapping"]))
        scales = {str(fusion): from_json(values) for fusion, values in header["scales"].items()}
        features, about = dict(header["features"]), dict(header["about"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its header cannot be read ({error}); train it again") from error
    try:
        pair.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path}: tensors that are not this network's ({' '.join(str(error).split())[:160]}); train it again"
        ) from error
    return Checkpoint(pair.eval().requires_grad_(False), features, scales, about)
