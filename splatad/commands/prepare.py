"""`splatad prepare`: datasets, posed photos and meshes become scenes in the workspace. The user's files are only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
    triangulate: bool = False
    """Where the scene has no points to start splats from, find some: features matched between the photos and triangulated
    with the cameras as they are (the extra photos; seconds to minutes)."""
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
    triangulate: bool = False
    """Where the scene has no points to start splats from, find some: features matched between the photos and triangulated
    with the cameras as they are (the extra photos; seconds to minutes)."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Colmap:
    """Photos with their cameras in COLMAP's sparse model, binary or text, one camera for all photos or one each."""

    data: Path
    """A COLMAP project's folder: the model is looked for in it, sparse, sparse/0, dense/0/sparse and colmap/sparse/0."""
    name: str | None = None
    """The scene's name in the workspace; the folder's if not given."""
    images: Path | None = None
    """Folder of the photos the model was made from; else `images` beside the model."""
    model: Path | None = None
    """Folder with cameras, images and points3D (.bin or .txt) instead of the one found: that with the most photos."""
    triangulate: bool = False
    """Where the scene has no points to start splats from, find some: features matched between the photos and triangulated
    with the cameras as they are (the extra photos; seconds to minutes)."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Llff:
    """Photos with their cameras in LLFF's poses_bounds.npy."""

    data: Path
    """Folder with poses_bounds.npy and images (or images_4, images_8, ...)."""
    name: str | None = None
    """The scene's name in the workspace; the folder's if not given."""
    images: Path | None = None
    """Folder of the photos, one for each row of poses_bounds.npy, in the order of their names."""
    triangulate: bool = False
    """Where the scene has no points to start splats from, find some: features matched between the photos and triangulated
    with the cameras as they are (the extra photos; seconds to minutes)."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Photos:
    """Plain photos of a part, or a video round it: the cameras are found by structure from motion (pycolmap)."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of photos (20 to 60 all round the part, in steps of about 10 degrees), or a video file."""
    name: str | None = None
    """The scene's name in the workspace; the folder's or the video's if not given."""
    frames: int = 120
    """Frames to take from a video: the sharpest of as many equal stretches."""
    queries: Path | None = None
    """Folder of photos to inspect; a subfolder's name is its photos' label (good, or a defect's type)."""
    length_mm: float | None = None
    """A known length on the part or beside it, in mm; --between says where."""
    between: tuple[str, ...] = ()
    """The two ends of that length as PHOTO:u,v:u2,v2, in px from the photo's top left corner. Marked in two or more photos
    they are triangulated; in one, their depth is that of the points found beside them."""
    scale_to_mm: float | None = None
    """Instead: millimetres per unit of the scene (a third of the median camera's distance)."""
    keep_all: bool = False
    """Use blurred photos and doubles too."""
    turntable: Literal["auto", "yes", "no"] = "auto"
    """Whether the camera stood still while the part turned before it: cameras are then found from what turns alone, and masks
    of it are made. auto looks whether the photos' rims stay the same."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class MadReal:
    """The classes of MAD-Real: photos without cameras, which are found by structure from motion (pycolmap)."""

    data: Path
    """Folder with the classes, or one class: a folder with train, test and ground_truth."""
    class_: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes to prepare; all of them if none is given."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Piad:
    """The classes of PIAD (synt or real), with the cameras and masks they bring, else with our own."""

    data: Path
    """Folder with the classes, or one class: a folder with train, test, ground_truth and mostly transforms.json."""
    class_: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes to prepare; all of them if none is given."""
    workspace: Path | None = None
    """Where scenes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Mesh:
    """A CAD file or scan: photographed from all round by a ray caster; no photo of the part is needed.

    The photos are grey where the file has no colour, and lit softly from above and from the camera. `splatad fit` takes the
    preset `mesh` for such a scene: splats start on the surface, and a fit takes half of the usual steps. Broken meshes (holes,
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


@dataclass(frozen=True)
class BrokenChairs:
    """BrokenChairs-180K as released, or a set of `splatad generate chairs`: packed for `splatad train cmt`.

    Photos with and without an anomaly, grey views with cameras, and surface points become plain arrays. The pickles of the
    release are read without running anything in them. Damaged or half-listed samples are named and left out.
    """

    data: Path
    """Folder with images, annotations, shapes and split.json."""
    name: str | None = None
    """The set's name in the workspace; the folder's if not given."""
    px: int = 256
    """Width and height of the packed pictures, px; a multiple of 32."""
    views: int | None = None
    """Reference views a shape; as many as most shapes have if not given."""
    shapes: int | None = None
    """Only so many shapes, to try; all if not given."""
    workspace: Path | None = None
    """Where sets are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""


@dataclass(frozen=True)
class Mvtec3d:
    """The classes of MVTec 3D-AD: photos with a measured point at every pixel, for `splatad train cfm`.

    The support plane is removed and the largest cluster of points kept. Samples that cannot be used are named and left out; a
    stopped run is taken up where it stood.
    """

    data: tyro.conf.Positional[Path]
    """Folder with the classes, or one class: a folder with train/good/rgb and train/good/xyz."""
    class_: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes to prepare, for example bagel; all of them if none is given."""
    name: str | None = None
    """The name in the workspace, for a single class; the class's (for rgb-blacked with that added) if not given."""
    variant: Literal["rgb", "rgb-blacked"] = "rgb"
    """rgb: photos as they are, as CFM's published results. rgb-blacked: background black and padded, as M3DM's."""
    noise_votes: bool = False
    """Let DBSCAN's noise count as one cluster when the largest is chosen, as the published code does."""
    seed: int = 0
    """Draws the points to which support planes are fitted."""
    workers: int = 0
    """Processes that work; 0 for one per processor. Changes the time only."""
    workspace: Path | None = None
    """Where classes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


@dataclass(frozen=True)
class Eyecandies:
    """The classes of Eyecandies: rendered sweets with depth, for `splatad train cfm`.

    Depth becomes points, the background one point. Samples that cannot be used are named and left out; a stopped run is taken up
    where it stood.
    """

    data: tyro.conf.Positional[Path]
    """Folder with the classes, or one class: a folder with train/data and test_public/data."""
    class_: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes to prepare, for example CandyCane; all of them if none is given."""
    name: str | None = None
    """The name in the workspace, for a single class; the class's (for rgb-blacked with that added) if not given."""
    variant: Literal["rgb", "rgb-blacked"] = "rgb"
    """rgb: photos as they are, as published. rgb-blacked: their background black."""
    workers: int = 0
    """Processes that work; 0 for one per processor. Changes the time only."""
    workspace: Path | None = None
    """Where classes are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    copy: bool = False
    """Copy the photos instead of linking to them."""


Command = (
    Annotated[MadSim, tyro.conf.subcommand(name="mad-sim")]
    | Annotated[NerfSynthetic, tyro.conf.subcommand(name="nerf-synthetic")]
    | Annotated[Nerfstudio, tyro.conf.subcommand(name="nerfstudio")]
    | Annotated[Colmap, tyro.conf.subcommand(name="colmap")]
    | Annotated[Llff, tyro.conf.subcommand(name="llff")]
    | Annotated[Photos, tyro.conf.subcommand(name="photos")]
    | Annotated[MadReal, tyro.conf.subcommand(name="mad-real")]
    | Annotated[Piad, tyro.conf.subcommand(name="piad")]
    | Annotated[Mesh, tyro.conf.subcommand(name="mesh")]
    | Annotated[BrokenChairs, tyro.conf.subcommand(name="broken-chairs")]
    | Annotated[Mvtec3d, tyro.conf.subcommand(name="mvtec-3d")]
    | Annotated[Eyecandies, tyro.conf.subcommand(name="eyecandies")]
)

REFUSED_SHOWN = 20

Source = MadSim | NerfSynthetic | Nerfstudio | Colmap | Llff | Photos | MadReal | Piad


def run(config: Source | Mesh | BrokenChairs | Mvtec3d | Eyecandies) -> int:
    """0 once every scene is written and a summary is printed.

    Raises: InputError for data that cannot be used, MissingPartError for --triangulate without pycolmap; nothing half-written
    then counts as a scene.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from splatad.workspace import open_workspace

    if isinstance(config, Nerfstudio | NerfSynthetic | Colmap | Llff) and config.triangulate:
        from prepare.triangulate import find_pycolmap

        find_pycolmap()  # says now, not after the photos are placed, that it is missing
    workspace = open_workspace(config.workspace)
    console = Console(soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        notes: list[str] = []
        if isinstance(config, BrokenChairs | Mvtec3d | Eyecandies):
            made = _packed if isinstance(config, BrokenChairs) else _registered
            lines = made(config, workspace.scene, progress)  # type: ignore[arg-type]
            bar.stop()
            for line in lines:
                console.print(line, markup=False)
            return 0
        if isinstance(config, Mesh):
            folders, notes = _prepare_mesh(config, workspace.scene, progress)
        else:
            folders = _prepare(config, workspace.scene, progress)
        triangulated = _triangulated(config, folders, progress)
    for folder in folders:
        for line in _summary(folder):
            console.print(line, markup=False)
    for line in (*triangulated, *(f"  {note}" for note in notes)):
        console.print(line, markup=False)
    follow_up = f"splatad fit --class {folders[0].name}"
    if config.workspace is not None:
        follow_up += f" --workspace {config.workspace}"
    console.print(f"next: {follow_up}", markup=False)
    return 0


def _packed(
    config: BrokenChairs,
    scene_folder: Callable[[str], Path],
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """Pack the set; what to print."""
    from prepare.datasets.broken_chairs import NAMED, prepare_broken_chairs
    from prepare.shape_pairs import SPLITS

    found = prepare_broken_chairs(
        config.data,
        scene_folder,
        name=config.name,
        px=config.px,
        views=config.views,
        shapes=config.shapes,
        progress=progress,
    )
    pairs = found.pairs
    split = ", ".join(f"{len(pairs.splits[name])} {name}" for name in SPLITS)
    anomalous = int(pairs.query_label.sum())
    lines = [
        f"{found.folder.name}: {len(pairs.shapes)} shapes ({split}) with {pairs.sizes.views} views each,"
        f" {pairs.sizes.queries} photos ({anomalous} with an anomaly)"
    ]
    lines += [f"  {note}" for note in found.notes]
    if found.skipped:
        lines.append(f"  left out: {len(found.skipped)} samples")
        lines += [f"    {reason}" for reason in found.skipped[:NAMED]]
    lines.append(f"  packed in {found.folder}")
    return lines


def _registered(
    config: Mvtec3d | Eyecandies,
    class_folder: Callable[[str], Path],
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """Prepare the classes; what to print."""
    from prepare.datasets.eyecandies import prepare_eyecandies
    from prepare.datasets.mvtec_3d import prepare_mvtec_3d
    from prepare.foreground_cloud import CloudSettings
    from prepare.registered import SPLITS

    if isinstance(config, Mvtec3d):
        classes = prepare_mvtec_3d(
            config.data,
            class_folder,
            classes=config.class_ or None,
            name=config.name,
            variant=config.variant,
            cloud=CloudSettings(noise_votes=config.noise_votes, seed=config.seed),
            copy=config.copy,
            workers=config.workers,
            progress=progress,
        )
    else:
        classes = prepare_eyecandies(
            config.data,
            class_folder,
            classes=config.class_ or None,
            name=config.name,
            variant=config.variant,
            copy=config.copy,
            workers=config.workers,
            progress=progress,
        )
    lines = []
    for made in classes:
        found = made.registered
        split = ", ".join(f"{len(found.samples(name))} {name}" for name in SPLITS)
        labels = Counter(sample.defect for sample in found.samples("test"))
        by_label = ", ".join(f"{count} {label}" for label, count in labels.items())
        lines.append(
            f"{made.folder.name}: {split}" + (f" ({by_label})" if by_label else "") + f"; {found.variant}"
        )
        lines += [f"  {note}" for note in made.notes]
        if made.kept:
            lines.append(f"  {made.kept} samples were there already")
        if found.refused:
            lines.append(f"  refused: {len(found.refused)} samples")
            lines += [f"    {name}: {why}" for name, why in found.refused[:REFUSED_SHOWN]]
            if len(found.refused) > REFUSED_SHOWN:
                lines.append(f"    ... all of them are in {made.folder / 'class.json'}")
        lines.append(f"  written to {made.folder}")
    follow_up = f"splatad train cfm --class {classes[0].folder.name}"
    if config.workspace is not None:
        follow_up += f" --workspace {config.workspace}"
    return [*lines, f"next: {follow_up}"]


def _prepare(
    config: Source,
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
    if isinstance(config, Colmap):
        from prepare.datasets.colmap import prepare_colmap

        return prepare_colmap(
            config.data,
            scene_folder,
            name=config.name,
            images=config.images,
            model=config.model,
            copy=config.copy,
            progress=progress,
        )
    if isinstance(config, Llff):
        from prepare.datasets.llff import prepare_llff

        return prepare_llff(
            config.data,
            scene_folder,
            name=config.name,
            images=config.images,
            copy=config.copy,
            progress=progress,
        )
    if isinstance(config, Photos):
        from prepare.datasets.photos import prepare_photos

        return prepare_photos(
            config.data,
            scene_folder,
            name=config.name,
            copy=config.copy,
            frames=config.frames,
            queries=config.queries,
            length_mm=config.length_mm,
            between=config.between,
            scale_to_mm=config.scale_to_mm,
            keep_all=config.keep_all,
            turntable=config.turntable,
            progress=progress,
        )
    if isinstance(config, MadReal):
        from prepare.datasets.mad_real import prepare_mad_real

        return prepare_mad_real(
            config.data, scene_folder, classes=config.class_ or None, copy=config.copy, progress=progress
        )
    if isinstance(config, Piad):
        from prepare.datasets.piad import prepare_piad

        return prepare_piad(
            config.data, scene_folder, classes=config.class_ or None, copy=config.copy, progress=progress
        )
    from prepare.datasets.nerfstudio import prepare_nerfstudio

    return prepare_nerfstudio(
        config.data, scene_folder, name=config.name, points=config.points, copy=config.copy, progress=progress
    )


def _triangulated(
    config: Source | Mesh,
    folders: list[Path],
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """What --triangulate found, a line a scene; nothing without it."""
    if not isinstance(config, Nerfstudio | NerfSynthetic | Colmap | Llff) or not config.triangulate:
        return []
    from prepare.triangulate import triangulate_scene

    lines = []
    for folder in folders:
        found = triangulate_scene(
            folder, lambda done, total: progress("reading photos to triangulate", done, total)
        )
        lines.append(
            "  not triangulated: the scene has points of its own"
            if found is None
            else f"  triangulated: {len(found.cloud.positions)} points with a median reprojection error of"
            f" {found.median_error_px:.2f} px, each seen in {found.median_track:.0f} photos"
        )
    return lines


def _prepare_mesh(
    config: Mesh, scene_folder: Callable[[str], Path], progress: Callable[[str, int, int], None]
) -> tuple[list[Path], list[str]]:
    from dataclasses import fields

    from prepare.datasets.mesh import MeshSettings, prepare_mesh

    settings = MeshSettings(**{field.name: getattr(config, field.name) for field in fields(MeshSettings)})
    return prepare_mesh(config.data, scene_folder, settings, name=config.name, progress=progress)


def _summary(folder: Path) -> list[str]:
    from prepare.datasets.scene_folder import read_missing, read_summary
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
    lines.extend(f"  {line}" for line in read_summary(folder))
    missing = read_missing(folder)
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        lines.append(f"  missing: {len(missing)} listed files are not there ({shown})")
    lines.append(f"  written to {folder}")
    return lines
