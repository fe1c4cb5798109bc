"""What the commands of CFM are given: prepared classes of photos with points, trained networks, features kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from detect.cfm.checkpoint import Checkpoint, load_checkpoint
from detect.cfm.stored import FeatureConfig
from detect.cfm.train import NETWORK
from prepare.errors import InputError, UsageError
from prepare.registered import CLASS_FILE, RegisteredClass
from splatad.workspace import Workspace

PREPARE = "prepare it with `splatad prepare mvtec-3d` or `splatad prepare eyecandies`"


def find_class(workspace: Workspace, given: str) -> RegisteredClass:
    """The class meant by --class: a folder with class.json, or the name of one in the workspace.

    Raises: InputError where there is none, or it is damaged; the message names those there are.
    """
    for folder in (Path(given), workspace.scene(given)):
        if (folder / CLASS_FILE).is_file():
            return RegisteredClass.open(folder)
    known = sorted(path.parent.name for path in (workspace.root / "scenes").glob(f"*/{CLASS_FILE}"))
    there = f"there are {', '.join(known)}" if known else "there is none yet"
    raise InputError(
        f"--class {given}: no class of photos with points (no {CLASS_FILE}) there nor in {workspace.root / 'scenes'}, "
        f"where {there}; {PREPARE}"
    )


def network_name(name: str, features: FeatureConfig, default: FeatureConfig) -> str:
    """The folder of a class's network: "bagel-cfm", with the features where they are not the usual ones."""
    parts = [name, "cfm"]
    if (features.photo, features.shape) != (default.photo, default.shape):
        parts += [features.photo, features.shape]
    if features.blocks:
        parts.append(f"{features.blocks}-blocks")
    return "-".join(parts)


def find_network(workspace: Workspace, path: Path | None, name: str | None) -> Path:
    """The file meant by --network, itself or in a folder of `train cfm`, else the one of --class in the workspace.

    Raises: InputError where there is none; UsageError where neither is given, or the class has several.
    """
    if path is not None:
        if path.is_dir():
            if not (path / NETWORK).is_file():
                raise InputError(
                    f"{path}: no {NETWORK} in this folder; name the file that `splatad train cfm` wrote"
                )
            return path / NETWORK
        return path
    if name is None:
        raise UsageError("--network: name the file that `splatad train cfm` wrote, or its class with --class")
    exact = workspace.network(f"{name}-cfm") / NETWORK
    found = (
        [exact] if exact.is_file() else sorted((workspace.root / "networks").glob(f"{name}-cfm*/{NETWORK}"))
    )
    if not found:
        raise InputError(
            f"--class {name}: no network of it in {workspace.root / 'networks'}; train it with "
            f"`splatad train cfm --class {name}`, or name its file with --network"
        )
    if len(found) > 1:
        raise UsageError(
            f"--class {name}: {len(found)} networks ({', '.join(one.parent.name for one in found)}); name one with --network"
        )
    return found[0]


def open_checkpoint(path: Path) -> tuple[Checkpoint, FeatureConfig]:
    """The networks of a file, and the features that they were trained on.

    Raises: InputError as `load_checkpoint`, or for features that this version does not know.
    """
    checkpoint = load_checkpoint(path)
    return checkpoint, features_from(path, checkpoint.features)


def features_from(path: Path, values: Mapping[str, Any]) -> FeatureConfig:
    """The settings of features from plain values. Raises: InputError for names that this version does not know."""
    known = {one.name for one in fields(FeatureConfig)}
    if unknown := sorted(set(values) - known):
        raise InputError(
            f"{path}: trained on features with {', '.join(unknown)}, which this version does not know; train again"
        )
    try:
        return FeatureConfig(**values)
    except TypeError as error:
        raise InputError(f"{path}: its features cannot be read ({error}); train again") from error


def trained_class(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Name, source, variant and settings of the class that networks were trained on; empty where they are not told."""
    found = checkpoint.about.get("class")
    return found if isinstance(found, dict) else {}
