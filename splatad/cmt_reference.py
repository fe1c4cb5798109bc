"""The reference of `detect --detector cmt`: views of a mesh file or of a reference's splats, encoded once and kept.

What is kept lies in WORKSPACE/features, under a name made of the part's content, the network's and how views are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detect.cmt.encoded import load_encoded, save_encoded
from detect.cmt.model import Cells
from detect.cmt.predict import EncodedReference, Predictor
from detect.cmt.reference import MeshViewer, PartFrame, ReferenceViews, part_frame, views_of_splats
from pose.locate import Located
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.generate.chairs import ChairSettings, view_cameras
from prepare.mesh import MESH_SUFFIXES, Axis, load_mesh
from prepare.scene import ViewImage
from splatad.finder import Finder
from splatad.inspector import Inspector
from splatad.lens import LensMode, QueryLens
from splatad.mesh_finder import finder_of_mesh
from splatad.reference_dir import SPLATS

VIEWS = 20  # of a part, as `generate chairs` makes them
VIEWS_VERSION = 2  # raised whenever the same part gives other views
_SOLID = 0.5  # opacity from which a splat is part of the surface
_OUTLIERS = 0.01  # share of the splats that may float about the part


@dataclass(frozen=True)
class ShapeReference:
    """A part as the network compares photos with it."""

    name: str
    encoded: EncodedReference
    azimuths_deg: tuple[float, ...]  # of the views
    elevations_deg: tuple[float, ...]
    kept: bool  # whether it was found in the workspace, not made
    notes: tuple[str, ...] = ()  # what is to be said of the part's file
    frame: PartFrame | None = None  # of the part's own world in the network's
    finder: Finder | None = None  # of photos' cameras; None where the network makes no use of them
    finds_in: Literal["own", "network"] = "own"  # the finder's world
    read: Callable[[Path, QueryLens], ViewImage] | None = None  # a photo as `finder` takes it
    aiding: Callable[[Camera], ReferenceViews] | None = None  # the part from a camera of the network's world

    def locate(
        self, image: ViewImage, lens: QueryLens, sides: Sequence[Float[Tensor, "xyz=3"]]
    ) -> Located | None:
        """The camera of `image` in the part's own world, None where it shows no part; `sides` are directions of the network's
        world from which it is sought too."""
        assert self.finder is not None
        assert self.frame is not None
        if self.finds_in == "own":
            return self.finder.locate(image, lens, [self.frame.turn.T @ side for side in sides])
        found = self.finder.locate(image, lens, sides)
        if found is None:
            return None
        others = tuple(self.frame.out_of_network(camera) for camera in found.alternatives)
        return replace(found, camera=self.frame.out_of_network(found.camera), alternatives=others)


def is_mesh(path: Path) -> bool:
    """Whether --reference names a mesh file rather than a reference folder."""
    return path.suffix.lower() in MESH_SUFFIXES and not path.is_dir()


def reference_of_mesh(
    path: Path,
    up: Literal["auto", "y", "z"],
    predictor: Predictor,
    network: Path,
    features: Path,
    lens_mode: LensMode = "auto",
) -> ShapeReference:
    """Views of the mesh in `path`, kept in the folder `features`; "auto" is the axis usual for the kind of file.

    Cameras of photos are found by splats laid on the mesh (`finder_of_mesh`).

    Raises: MissingPartError without trimesh or a renderer; InputError as `load_mesh`, `check_views`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such mesh; give a .stl, .obj, .ply or .glb file, or a reference folder")
    file = load_mesh(path)
    axis: Axis = file.up if up == "auto" else up
    frame = part_frame(torch.from_numpy(file.mesh.vertices), axis)
    viewer = MeshViewer(file.mesh, frame)
    # A .gltf is a list of other files: its own bytes do not tell the shape.
    content = file.mesh.digest() if path.suffix.lower() == ".gltf" else _digest(path)
    key = _key(content, path.suffix.lower(), up, predictor, network)
    cameras = _cameras(predictor)
    encoded, kept = _kept_or_made(features, key, predictor, lambda: viewer.views(cameras))
    found = replace(_with_angles(path.name, encoded, kept, predictor), notes=file.notes)
    if not predictor.network.config.aided:
        return found
    finder = finder_of_mesh(path.name, viewer, cameras, lens_mode, predictor.device)
    return replace(
        found,
        frame=frame,
        finder=finder,
        finds_in="network",
        read=finder.decode,
        aiding=lambda camera: viewer.views([camera]),
    )


def reference_of_splats(
    inspector: Inspector,
    folder: Path,
    up: Literal["auto", "y", "z"],
    predictor: Predictor,
    network: Path,
    features: Path,
) -> ShapeReference:
    """Grey views of a reference's splats; "auto" takes z for up, as `splatad prepare` has it.

    Raises: InputError where they show nothing, or as `check_views`.
    """
    axis: Axis = "z" if up == "auto" else up
    gaussians = inspector.loaded.reference.gaussians
    solid = torch.sigmoid(gaussians.logit_opacities) > _SOLID
    frame = part_frame(gaussians.means[solid], axis, _OUTLIERS)
    key = _key(_digest(folder / SPLATS), ".splats", axis, predictor, network)
    encoded, kept = _kept_or_made(
        features, key, predictor, lambda: views_of_splats(gaussians, _cameras(predictor), frame)
    )
    found = _with_angles(inspector.loaded.reference.name, encoded, kept, predictor)
    if not predictor.network.config.aided:
        return found
    return replace(
        found,
        frame=frame,
        finder=inspector.finder,
        read=inspector.read,
        aiding=lambda camera: views_of_splats(gaussians, [camera], frame),
    )


def _cameras(predictor: Predictor) -> list[Camera]:
    return [camera for _, _, camera in _views(predictor)]


def _views(predictor: Predictor) -> list[tuple[float, float, Camera]]:
    """Azimuth, elevation (degrees) and camera of each view: those of the chairs that the network learned from."""
    return view_cameras(ChairSettings(views=VIEWS, px=predictor.network.config.px))


def _with_angles(name: str, encoded: EncodedReference, kept: bool, predictor: Predictor) -> ShapeReference:
    views = _views(predictor)
    return ShapeReference(name, encoded, tuple(v[0] for v in views), tuple(v[1] for v in views), kept)


def _kept_or_made(
    features: Path, key: str, predictor: Predictor, make: Callable[[], ReferenceViews]
) -> tuple[EncodedReference, bool]:
    path = features / f"{key[:32]}.safetensors"
    encoded = load_encoded(path, key)
    if encoded is None:
        made = predictor.encode(make())
        save_encoded(path, made, key)
        return made, False
    device, cells = predictor.device, encoded.cells
    assert cells.xyz is not None
    on_device = Cells(
        cells.features.to(device), cells.matching.to(device), cells.share.to(device), cells.xyz.to(device)
    )
    return replace(encoded, cells=on_device), True


def _key(content: str, kind: str, up: str, predictor: Predictor, network: Path) -> str:
    text = f"{VIEWS_VERSION} {VIEWS} {content} {kind} {up} {_digest(network)} {predictor.device.type}"
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file. Raises: InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
