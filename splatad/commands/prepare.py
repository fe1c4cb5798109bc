"""`splatad prepare`: datasets, posed photos and meshes become scenes in the workspace. The user's files are only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

# Nothing here imports torch: the command line reads these classes to print its help.


@dataclass(frozen=True)
class MadSim:
    """The classes of a MAD-Sim dataset (or one class folder in its layout)."""

    data: Path
    """Folder with the classes, or one class: a folder with train/good, test, ground_truth and transforms.json."""
    class_: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes to prepare, for example 01Gorilla; all of them if none is given."""
    name: str | None = None
    """The scene's name in the workspace, for a single class; the class's if not given."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""
    subset: float | None = None
    """Share of the train photos to keep, above 0 and at most 1, to try few reference views; all if not given.
    A smaller share lies inside a larger one; all test photos stay; the scene of 0.2 of a class is called CLASS-20."""
    subset_seed: int = 0
    """Draws the photos of --subset; one other than 0 is added to the scene's name."""


@dataclass(frozen=True)
class NerfSynthetic:
    """A NeRF-synthetic scene: transforms_train.json and RGBA photos."""

    data: Path
    """Folder with transforms_train.json and, if there, transforms_val.json and transforms_test.json."""
    name: str | None = None
    """The scene's name in the workspace; the folder's if not given."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Nerfstudio:
    """Any photos with cameras in nerfstudio's transforms.json: distorted, rectangular, masked."""

    data: Path
    """Folder with a transforms.json, or that file."""
    name: str | None = None
    """The scene's name in the workspace; the folder's if not given."""
    points: Path | None = None
    """Coloured points in the cameras' world (.ply, or COLMAP's points3D.bin or .txt) instead of transforms.json's."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Mesh:
    """A CAD file or scan: photographed from all round by a ray caster; no photo of the part is needed.

    The photos are grey where the file has no colour, and lit softly from above and from the camera. `splatad fit` takes the
    preset `mesh` for such a scene: splats start on the surface, and a fit needs under a minute. Broken meshes (holes,
    inverted faces, doubled vertices) are told and used; one without faces or area is refused.
    """

    data: tyro.conf.Positional[Path]
    """The part: .stl, .obj, .ply, .glb, .gltf or .off; .step with cascadio installed."""
    name: str | None = None
    """The scene's name in the workspace; the file's if not given."""
    unit: Literal["mm", "cm", "m", "inch"] | None = None
    """Unit of the file's numbers, so that defects are measured in mm; glTF says its own, .stl is taken for mm."""
    up: Literal["y", "z"] | None = None
    """Which of the file's axes points up, where the sky's light comes from; y for .obj and glTF, else z."""
    scale: Literal["normalised", "kept"] = "normalised"
    """normalised: the world is centred on the part, z up, half its longest side is 1. kept: the file's own coordinates."""
    views: int = 96
    """Photos, evenly over the whole sphere; a fifth of them are kept from the fit to calibrate."""
    size_px: int = 400
    """Width and height of the photos, px."""
    supersample: int = 3
    """Samples along each axis of a pixel where colours change."""
    points: int = 30_000
    """Points on the surface for splats to start from."""
    renderer: Literal["auto", "embree", "pytorch3d"] = "auto"
    """What draws: embree (pip install 'splatad[mesh]') or pytorch3d where it is installed."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""


Command = (
    Annotated[MadSim, tyro.conf.subcommand(name="mad-sim")]
    | Annotated[NerfSynthetic, tyro.conf.subcommand(name="nerf-synthetic")]
    | Annotated[Nerfstudio, tyro.conf.subcommand(name="nerfstudio")]
    | Annotated[Mesh, tyro.conf.subcommand(name="mesh")]
)


def run(config: MadSim | NerfSynthetic | Nerfstudio | Mesh) -> int:
    """0 once every scene is written and a summary is printed.

    Raises: InputError for data that cannot be used; nothing half-written then counts as a scene.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from splatad.workspace import open_workspace

    workspace = open_workspace(config.workspace)
    console = Console(soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        notes: list[str] = []
        if isinstance(config, Mesh):
            folders, notes = _prepare_mesh(config, workspace.scene, progress)
        else:
            folders = _prepare(config, workspace.scene, progress)
    for folder in folders:
        for line in _summary(folder):
            console.print(line, markup=False)
    for note in notes:
        console.print(f"  {note}", markup=False)
    follow_up = f"splatad fit --class {folders[0].name}"
    if config.workspace is not None:
        follow_up += f" --workspace {config.workspace}"
    console.print(f"next: {follow_up}", markup=False)
    return 0


def _prepare(
    config: MadSim | NerfSynthetic | Nerfstudio,
    scene_folder: Callable[[str], Path],
    progress: Callable[[str, int, int], None],
) -> list[Path]:
    if isinstance(config, MadSim):
        from prepare.datasets.mad_sim import prepare_mad_sim

        return prepare_mad_sim(
            config.data,
            scene_folder,
            classes=config.class_ or None,
            copy=config.copy,
            subset=config.subset,
            seed=config.subset_seed,
            name=config.name,
            progress=progress,
        )
    if isinstance(config, NerfSynthetic):
        from prepare.datasets.nerf_synthetic import prepare_nerf_synthetic

        return prepare_nerf_synthetic(
            config.data, scene_folder, name=config.name, copy=config.copy, progress=progress
        )
    from prepare.datasets.nerfstudio import prepare_nerfstudio

    return prepare_nerfstudio(
        config.data, scene_folder, name=config.name, points=config.points, copy=config.copy, progress=progress
    )


def _prepare_mesh(
    config: Mesh, scene_folder: Callable[[str], Path], progress: Callable[[str, int, int], None]
) -> tuple[list[Path], list[str]]:
    from dataclasses import fields

    from prepare.datasets.mesh import MeshSettings, prepare_mesh

    settings = MeshSettings(**{field.name: getattr(config, field.name) for field in fields(MeshSettings)})
    return prepare_mesh(config.data, scene_folder, settings, name=config.name, progress=progress)


def _summary(folder: Path) -> list[str]:
    from prepare.datasets.scene_folder import read_missing
    from prepare.scene import load_scene

    scene = load_scene(folder)
    lens = scene.views[0].camera
    masks = sum(view.mask_path is not None for view in scene.views)
    labels = Counter(query.label or "unlabelled" for query in scene.queries)
    by_label = ", ".join(f"{count} {label}" for label, count in labels.items())
    lines = [
        f"{scene.name}: {len(scene.views)} views of {lens.width} x {lens.height}, {masks} foreground masks,"
        f" {len(scene.queries)} queries" + (f" ({by_label})" if by_label else "")
    ]
    true_masks = sum(query.mask_path is not None for query in scene.queries)
    poses = sum(query.world_to_cam is not None for query in scene.queries)
    if scene.queries:
        lines.append(f"  known of the queries: {true_masks} defect masks, {poses} true cameras")
    if scene.points_path is not None:
        lines.append(f"  points: {scene.points_path.name}")
    missing = read_missing(folder)
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        lines.append(f"  missing: {len(missing)} listed files are not there ({shown})")
    lines.append(f"  written to {folder}")
    return lines
