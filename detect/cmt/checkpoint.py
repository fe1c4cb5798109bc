"""Trained networks on disk: one .safetensors file that says in its header what network it holds. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detect.cmt.model import CMT, ModelConfig, config_as_json, config_from_json
from prepare.errors import InputError
from prepare.network_file import read_network, write_network

FORMAT = "splatad-cmt-1"


def save_network(path: Path, network: CMT, about: Mapping[str, Any], half: bool = False) -> None:
    """Write the weights, the configuration and `about` (plain values: data, recipe, figures, thresholds), atomically.

    With `half` in half precision, to be shipped: answers then differ in the third digit of a logit.
    """
    values = {"model": config_as_json(network.config), "about": dict(about)}
    tensors = network.state_dict()
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    write_network(path, FORMAT, values, tensors)


def load_network(path: Path, expected: ModelConfig | None = None) -> tuple[CMT, dict[str, Any]]:
    """The network, in eval mode, and what was said about it.

    Raises: InputError where the file is missing, damaged, of another kind, not of the `expected` configuration, or holds
    tensors that are not this network's.
    """
    header, tensors = read_network(path, FORMAT, "give the .safetensors file that `splatad train cmt` wrote")
    try:
        config, about = config_from_json(header["model"]), dict(header["about"])
    except (InputError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its header cannot be read ({error}); train it again") from error
    if expected is not None and config != expected:
        ours, theirs = config_as_json(expected), config_as_json(config)
        name = next(name for name in ours if ours[name] != theirs[name])
        raise InputError(
            f"{path}: another network's weights ({name} {theirs[name]}, expected {ours[name]}); "
            "give a checkpoint of the same preset"
        )
    network = CMT(config)
    wanted = network.state_dict()
    if odd := sorted(set(wanted) ^ set(tensors)):
        kind = "foreign" if odd[0] in tensors else "missing"
        raise InputError(
            f"{path}: {kind} tensor {odd[0]} ({len(odd)} do not fit the network); train it again"
        )
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(
                f"{path}: tensor {name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}; train it again"
            )
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), about
