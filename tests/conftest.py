"""What all tests share: the same random numbers every time, the optional inputs, and who is skipped and why."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

# The packages are imported inside the functions: before that, jaxtyping's plugin must have hooked their import.
if TYPE_CHECKING:
    from prepare.camera import Camera
    from recon.fit import Photo
    from recon.gaussians import Gaussians
    from recon.reference import Reference
    from splatad.reference_dir import LoadedReference

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run the tests that take more than a few seconds"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Small tensors gain nothing from many threads, and results stay those of the two cores the product is meant for.
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = _why_no_gpu()
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with scripts/test --slow"))
        if "gpu" in item.keywords and no_gpu:
            item.add_marker(pytest.mark.skip(reason=no_gpu))


def _why_no_gpu() -> str:
    """Why tests marked gpu cannot run here; empty where they can."""
    if not torch.cuda.is_available():
        return "gpu: no CUDA device that torch can use"
    if importlib.util.find_spec("gsplat") is None:
        return "gpu: gsplat is not installed (pip install 'splatad[cuda]')"
    return ""


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- libraries under test may draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Folder of the real inputs (mad_car, nerf_lego, brush_reference, ...); skips where it is not on this machine."""
    named = os.environ.get("SPLATAD_TESTDATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"real inputs are not at {folder}: set SPLATAD_TESTDATA to the folder that holds mad_car, nerf_lego"
        )
    return folder


# ---------------------------------------------------------------------------------------------------------- a tiny part


@dataclass(frozen=True)
class Box:
    """A patterned box of the toy part."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    colour: tuple[float, float, float]


TOY = (
    Box((0.0, 0.0, -0.2), (0.6, 0.4, 0.2), (0.75, 0.2, 0.15)),
    Box((-0.3, 0.1, 0.25), (0.2, 0.22, 0.25), (0.15, 0.35, 0.8)),
    Box((0.35, -0.15, 0.15), (0.15, 0.15, 0.15), (0.2, 0.6, 0.2)),
)
OTHER_TOY = (
    Box((0.0, 0.0, 0.0), (0.2, 0.25, 0.7), (0.85, 0.75, 0.1)),
    Box((0.3, 0.0, 0.4), (0.35, 0.12, 0.12), (0.5, 0.1, 0.6)),
)


@dataclass(frozen=True)
class ToyReference:
    """A reference that was never fitted: splats laid on boxes, photos rendered from them with a little noise."""

    reference: Reference
    photos: tuple[Photo, ...]
    loaded: LoadedReference
    folder: Path

    def photo(
        self, camera: Camera, noise_seed: int | None = None, gaussians: Gaussians | None = None
    ) -> Photo:
        """What `camera` sees of the part (or of other splats), over white."""
        return toy_photo(gaussians or self.reference.gaussians, camera, "query.png", noise_seed)

    def cameras(self, count: int, seed: int) -> list[Camera]:
        """New cameras like those of the photos, in random directions."""
        return toy_cameras(count, seed)


def box_splats(boxes: tuple[Box, ...], step: float = 0.045) -> Gaussians:
    """Opaque splats on the faces of `boxes`, each face of its own shade with a pattern of spots and one stripe."""
    from recon.gaussians import gaussians_from_points

    positions, colours = [], []
    for box in boxes:
        centre, half, colour = (torch.tensor(values) for values in (box.centre, box.half, box.colour))
        for axis in range(3):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            for side in (-1.0, 1.0):
                lines = [torch.linspace(-1, 1, max(3, round(2 * float(half[k]) / step) + 1)) for k in (a, b)]
                u, v = (grid.reshape(-1) for grid in torch.meshgrid(*lines, indexing="ij"))
                on_face = torch.zeros(len(u), 3)
                on_face[:, a], on_face[:, b], on_face[:, axis] = u * half[a], v * half[b], side * half[axis]
                shade = 0.75 + 0.1 * axis + 0.12 * side
                spots = 1.0 + 0.35 * torch.sign(
                    torch.sin(9 * u * half[a] / 0.3 + axis) * torch.sin(4 * v * half[b] / 0.2)
                )
                face = (colour * shade)[None] * spots[:, None]
                face[(u - 0.4 * v).abs() < 0.15] = torch.tensor([0.9, 0.85, 0.3]) * shade
                positions.append(centre + on_face)
                colours.append(face.clamp(0.02, 0.98))
    points = torch.cat(positions)
    return gaussians_from_points(
        points, torch.cat(colours), torch.full((len(points),), 0.6 * step), opacity=0.95
    )


def toy_photo(gaussians: Gaussians, camera: Camera, name: str, noise_seed: int | None = None) -> Photo:
    """A render on white as a photo, with noise of one hundredth where a seed is given."""
    from recon.fit import Photo
    from recon.rasterize import rasterize

    with torch.no_grad():
        render = rasterize(gaussians, camera, torch.ones(3))
    rgb = render.rgb
    if noise_seed is not None:
        noise = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(noise_seed))
        rgb = rgb + 0.01 * noise
    return Photo(name, camera, rgb.clamp(0, 1).contiguous(), render.alpha, torch.ones(3), None)


def toy_cameras(count: int, seed: int | None = None) -> list[Camera]:
    """Cameras of 100 px at distance 3, looking at the origin: spread evenly, or drawn at random where a seed is given."""
    from pose.index import sphere_directions
    from prepare.camera import Camera, look_at

    if seed is None:
        directions = sphere_directions(count)
    else:
        drawn = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
        directions = torch.nn.functional.normalize(drawn, dim=1)
    up = torch.tensor([0.0, 0.0, 1.0])
    lens = Camera(torch.eye(4), 138.9, 138.9, 50.0, 50.0, 100, 100)
    return [lens.moved(look_at(3.0 * direction, torch.zeros(3), up)) for direction in directions]


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Torch on one thread: on tensors this small a second one only waits, for milliseconds where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyReference:
    """The toy part's reference, finished and on disk; a quarter of its 40 views are held out."""
    from recon.initial_points import Volume
    from recon.quality import ViewQuality
    from recon.rasterize import RasterOptions
    from recon.reference import Reference, ReferenceView
    from splatad.reference_dir import finish_reference

    gaussians = box_splats(TOY)
    photos = tuple(
        toy_photo(gaussians, camera, f"view_{i:02d}.png", noise_seed=i)
        for i, camera in enumerate(toy_cameras(40))
    )
    quality = ViewQuality(40.0, 36.0, 0.98, 0.95, None)
    views = tuple(
        ReferenceView(photo.name, photo.camera, photo.background, i % 4 == 2, quality)
        for i, photo in enumerate(photos)
    )
    reference = Reference(
        "toy", gaussians, views, Volume(torch.zeros(3), 1.0), RasterOptions(), 100, "/nowhere", 25.0, None, {"seed": 0}
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("toy")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded = finish_reference(folder, reference, photos, 0.1)
    finally:
        torch.set_num_threads(before)
    return ToyReference(reference, photos, loaded, folder)


@pytest.fixture(scope="session")
def other_toy_gaussians() -> Gaussians:
    """Another part: other boxes in other colours."""
    return box_splats(OTHER_TOY)


@pytest.fixture(scope="session")
def finished_like_the_toy(toy: ToyReference) -> Callable[[Gaussians, str, Path], LoadedReference]:
    """Makes a reference of other splats, seen by some of the toy's cameras, in a folder."""
    from splatad.reference_dir import finish_reference

    def finish(gaussians: Gaussians, name: str, folder: Path) -> LoadedReference:
        views = toy.reference.views[::5]
        photos = [toy.photo(v.camera, noise_seed=500 + i, gaussians=gaussians) for i, v in enumerate(views)]
        photos = [replace(photo, name=f"{name}_{i}.png") for i, photo in enumerate(photos)]
        reference = replace(toy.reference, name=name, gaussians=gaussians, views=views)
        return finish_reference(folder, reference, photos, None)

    return finish


@pytest.fixture(scope="session")
def other_toy(
    finished_like_the_toy: Callable[..., LoadedReference],
    other_toy_gaussians: Gaussians,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, LoadedReference]:
    """The other part's finished reference, its folder and in memory."""
    folder = tmp_path_factory.mktemp("other") / "other"
    return folder, finished_like_the_toy(other_toy_gaussians, "other", folder)
