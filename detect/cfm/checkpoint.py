"""Trained CFM on disk: one .safetensors file with both networks, the standardisation, the features' and the scales' settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detect.cfm.absolute import Absolute, as_json, from_json
from detect.cfm.mapping import MappingConfig, MappingPair
from prepare.errors import InputError
from prepare.network_file import read_network, write_network

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
        "mapping": asdict(checkpoint.pair.config),
        "features": dict(checkpoint.features),
        "scales": {fusion: as_json(scale) for fusion, scale in checkpoint.scales.items()},
        "about": dict(checkpoint.about),
    }
    write_network(path, FORMAT, values, checkpoint.pair.state_dict())


def load_checkpoint(path: Path) -> Checkpoint:
    """What `save_checkpoint` wrote.

    Raises: InputError where the file is missing, damaged, of another kind, or its tensors are not this network's.
    """
    header, tensors = read_network(path, FORMAT, "give the .safetensors file that `splatad train cfm` wrote")
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
