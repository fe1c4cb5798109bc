"""What the commands of CMT are given: packed sets of shapes and photos, and trained networks."""

from __future__ import annotations

from pathlib import Path

import torch

import detect.cmt
from detect.cmt.predict import Predictor
from detect.cmt.train import NETWORK
from prepare.errors import InputError, MissingPartError
from prepare.shape_pairs import PACK, ShapePairs
from splatad.reference_dir import choose_device
from splatad.workspace import Workspace

SHIPPED = Path(detect.cmt.__file__).parent / "small.safetensors"
PACKED = "packed"  # where `splatad generate chairs` puts the arrays, in its set's folder


def find_pack(workspace: Workspace, data: Path) -> tuple[str, ShapePairs]:
    """Name and content of the set meant by --data: a packed folder, what `generate chairs` wrote, or a prepared scene.

    Raises: InputError where there is none, or it is damaged.
    """
    places = [data, data / PACKED]
    if len(data.parts) == 1:
        places.append(workspace.scene(data.name))
    for place in places:
        if (place / PACK).is_file():
            resolved = place.resolve()
            name = resolved.parent.name if resolved.name == PACKED else resolved.name
            return name, ShapePairs.open(place)
    raise InputError(
        f"--data {data}: no packed shapes ({PACK}) there nor in {workspace.root / 'scenes'}; make them with "
        "`splatad generate chairs` or `splatad prepare broken-chairs`"
    )


def find_network(path: Path | None) -> Path:
    """The file meant by --network: itself, the one chosen in a folder of `train cmt`, or the one shipped with the package.

    Raises: MissingPartError where none is named and none is shipped; InputError where a folder holds none.
    """
    if path is None:
        if not SHIPPED.is_file():
            raise MissingPartError(
                "--network: none is shipped with this version; name the .safetensors file of a trained one, or train it "
                "with `splatad train cmt`"
            )
        return SHIPPED
    if path.is_dir():
        if not (path / NETWORK).is_file():
            raise InputError(
                f"{path}: no {NETWORK} in this folder; name the file that `splatad train cmt` wrote"
            )
        return path / NETWORK
    return path


def open_predictor(path: Path | None, device: torch.device) -> tuple[Path, Predictor]:
    """File and network of --network, on `device`. Raises: as `find_network` and `Predictor.from_file`."""
    file = find_network(path)
    predictor = Predictor.from_file(file)
    predictor.network.to(device)
    return file, predictor


def network_device(name: str) -> torch.device:
    """The device meant by --device for a network, which needs no gsplat: this process's own GPU where there are several.

    Raises: as `choose_device`.
    """
    import os

    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    device = choose_device(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
