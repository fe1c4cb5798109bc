"""References from meshes alone: seconds to make one, and what it finds in renders of good and of defective twins.

    .venv/bin/python scripts/bench_mesh.py [--mesh fandisk rocker-arm ...] [--cameras 50] [--json OUT.json]

Each mesh is prepared and fitted into --work unless it is there. Then from `--cameras` random cameras (any direction, any roll,
0.95 to 1.15 of the reference's distance) one photo of the good part and one of a twin with a defect: a piece cut away by a
plane, or a bump. A defect's mask is where the two differ in depth; it has LEAST_PX at least, else another place is tried.
Photos are written as 8-bit RGB on white and read as a user's are. `located` is a believed camera off by less than that many
degrees; `same view`: also one that is off but from which the good part looks the same (a symmetric part).
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from bench_rasterize import WIDTH, load, machine, new_table
from rich.console import Console

from detect.metrics import auroc, rotation_error_deg
from pose.se3 import rotation_from_vector
from prepare.atomic_write import write_json
from prepare.camera import Camera
from prepare.datasets.mesh import world_of
from prepare.image import write_image
from prepare.mesh import Mesh, load_mesh, mesh_of
from prepare.mesh_render import MeshPainter, MeshView, orbit_camera, surface_finder
from splatad.inspector import Inspector
from splatad.reference_dir import choose_device
from splatad.threads import leave_cores_to_the_kernel

REPO = Path(__file__).resolve().parents[1]
MESHES = {
    "fandisk": "fandisk.obj",
    "rocker-arm": "rocker-arm.obj",
    "stanford-bunny": "stanford-bunny.obj",
    "spot": "spot_textured/spot.obj",
    "1002_tray_bottom": "1002_tray_bottom.STL",
    "featuretype": "featuretype.STL",
    "fixed_top": "fixed_top.ply",
}
LEAST_PX = 60  # of a defect's mask
EDGE = 0.02  # of the faces at a defect, half lengths of the part
PAINTS = 24  # blotches of colour on a painted part
FEW_FACES = 5000  # with fewer, faces are too large to be painted in one colour each
SAME_VIEW = 0.02  # mean difference of the part's pixels, from where it looks the same
HEADINGS = (
    "part", "prepare s", "fit s", "photos", "< 0.5 deg", "< 1 deg", "same view", "median deg", "unflagged", "AUROC",
    "NG", "good NG", "cannot tell", "s",
)  # fmt: skip
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Options:
    """What to try."""

    mesh: tuple[str, ...] = tuple(MESHES)
    """Which of the meshes."""
    cameras: int = 50
    """Random cameras; two photos from each."""
    work: Path = REPO / "bench-work"
    """Workspace for scenes and references; made where they are missing, kept for the next run."""
    data: Path = field(
        default_factory=lambda: Path(os.environ.get("SPLATAD_TESTDATA") or REPO.parent / "shared" / "data")
    )
    """Folder of the datasets; the meshes are in its `meshes`."""
    shape: bool = False
    """Take the references' colours away: the photos, with theirs, are compared by shape alone."""
    paint: bool = False
    """Photograph the parts in blotches of PAINTS colours, under a sky from another side than the reference's."""
    far: float = 1.0
    """Photographs from so many times as far through a lens so many times as long, which is then known."""
    pictures: Path | None = None
    """Also keep the photos and masks here."""
    json: Path | None = None
    """Also write every photo's outcome to this file."""


@dataclass(frozen=True)
class Outcome:
    """What came of a photo."""

    part: str
    photo: str
    defect: str  # "good", "cut" or "bump"
    defect_px: int
    verdict: str
    score: float
    believed: bool
    turn_deg: float
    same_view: bool
    seconds: float

    def located(self, most_deg: float) -> bool:
        return self.believed and self.turn_deg < most_deg


def random_camera(mesh: Mesh, rng: np.random.Generator, size_px: int = 400) -> Camera:
    """Any direction and roll, 0.95 to 1.15 as far as the reference's cameras."""
    camera = orbit_camera(mesh, rng.uniform(-1, 1), rng.uniform(0, 2 * math.pi), size_px, UP)
    roll = torch.eye(4, dtype=torch.float64)
    turn = torch.tensor([0.0, 0.0, rng.uniform(-math.pi, math.pi)], dtype=torch.float64)
    roll[:3, :3] = rotation_from_vector(turn)
    pose = camera.world_to_cam.clone()
    pose[2, 3] *= rng.uniform(0.95, 1.15)
    return camera.moved(roll @ pose)


def farther(camera: Camera, times: float) -> Camera:
    """So many times as far away, through a lens so many times as long."""
    pose = camera.world_to_cam.clone()
    pose[:3, 3] *= times
    return replace(camera.moved(pose), fl_x=times * camera.fl_x, fl_y=times * camera.fl_y)


def finer(mesh: Mesh, near: np.ndarray) -> Mesh:
    """The same surface, faces for which `near` says so of one of their corners (m, 3) halved until no edge exceeds EDGE."""
    corners = mesh.vertices[mesh.faces]
    rows = np.concatenate([corners, mesh.corner_colours, mesh.corner_uv], axis=2)
    texture = mesh.face_texture
    waiting = near.any(axis=1)
    done, done_texture = [rows[~waiting]], [texture[~waiting]]
    rows, texture = rows[waiting], texture[waiting]
    while len(rows):
        edges = np.linalg.norm(rows[:, [1, 2, 0], :3] - rows[..., :3], axis=2)
        fine = edges.max(axis=1) <= EDGE
        done.append(rows[fine])
        done_texture.append(texture[fine])
        rows, texture, longest = rows[~fine], texture[~fine], edges[~fine].argmax(axis=1)
        take = np.arange(len(rows))
        a, b, c = (rows[take, (longest + k) % 3] for k in range(3))
        middle = 0.5 * (a + b)
        rows = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
        texture = np.concatenate([texture, texture])
    whole = np.concatenate(done)
    return mesh_of(
        whole[..., :3],
        colours=whole[..., 3:6],
        uv=whole[..., 6:],
        face_texture=np.concatenate(done_texture),
        textures=mesh.textures,
    )


def with_corners(mesh: Mesh, vertices: np.ndarray) -> Mesh:
    """The mesh with its vertices moved."""
    return mesh_of(
        vertices[mesh.faces], colours=mesh.corner_colours, uv=mesh.corner_uv, face_texture=mesh.face_texture,
        textures=mesh.textures,
    )  # fmt: skip


def cut(mesh: Mesh, rng: np.random.Generator) -> Mesh:
    """The outermost 0.05 to 0.15 half lengths in some direction cut away: what lies beyond the plane is pressed onto it."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    along = mesh.vertices @ direction
    plane = along.max() - rng.uniform(0.05, 0.15)
    fine = finer(mesh, (along > plane)[mesh.faces])
    beyond = np.maximum(fine.vertices @ direction - plane, 0.0)
    return with_corners(fine, fine.vertices - beyond[:, None] * direction)


def bump(mesh: Mesh, rng: np.random.Generator) -> Mesh:
    """A bump 0.05 to 0.1 half lengths high and twice as wide, anywhere on the surface."""
    face = int(rng.choice(len(mesh.faces), p=mesh.areas / mesh.areas.sum()))
    weight = rng.dirichlet(np.ones(3))
    centre, normal = weight @ mesh.vertices[mesh.faces[face]], mesh.face_normals[face]
    height = rng.uniform(0.05, 0.1)
    radius = 2.0 * height
    corners = mesh.vertices[mesh.faces]
    low, high = corners.min(axis=1), corners.max(axis=1)
    near = ((low < centre + 1.5 * radius) & (high > centre - 1.5 * radius)).all(axis=1)
    fine = finer(mesh, np.repeat(near[:, None], 3, axis=1))
    distance = np.linalg.norm(fine.vertices - centre, axis=1) / radius
    lift = height * np.clip(1.0 - distance**2, 0.0, None) ** 2
    return with_corners(fine, fine.vertices + lift[:, None] * normal)


def painted(mesh: Mesh, rng: np.random.Generator) -> Mesh:
    """The surface in blotches, each face in the colour of the nearest of PAINTS places in and about the part."""
    places = rng.uniform(*mesh.bounds, size=(PAINTS, 3))
    colours = rng.uniform(0.1, 0.95, size=(PAINTS, 3))
    fine = finer(mesh, np.ones(mesh.faces.shape, bool)) if len(mesh.faces) < FEW_FACES else mesh
    middles = fine.vertices[fine.faces].mean(axis=1)
    nearest = np.linalg.norm(middles[:, None] - places, axis=2).argmin(axis=1)
    return mesh_of(fine.vertices[fine.faces], colours=np.repeat(colours[nearest][:, None], 3, axis=1))


def bare(mesh: Mesh) -> Mesh:
    """The surface in grey."""
    return mesh_of(mesh.vertices[mesh.faces])


def differing(a: MeshView, b: MeshView) -> np.ndarray:
    """Pixels at which one shows what the other does not, or nearer or farther by more than 0.002."""
    both = np.isfinite(a.depth) & np.isfinite(b.depth)
    apart = np.abs(np.where(both, a.depth, 0.0) - np.where(both, b.depth, 0.0)) > 0.002
    return apart | (np.isfinite(a.depth) != np.isfinite(b.depth))


def photograph(mesh: Mesh, camera: Camera, up: np.ndarray = UP) -> MeshView:
    return MeshPainter(mesh, surface_finder(mesh), up).photograph(camera)


def looks_the_same(mesh: Mesh, a: Camera, b: Camera) -> bool:
    """Whether both see as good as the same picture of it."""
    one, other = photograph(mesh, a), photograph(mesh, b)
    part = (one.alpha > 0) | (other.alpha > 0)
    return float(np.abs(on_white(one) - on_white(other))[part].mean()) < SAME_VIEW


def on_white(view: MeshView) -> np.ndarray:
    return view.rgb * view.alpha[..., None] + (1.0 - view.alpha[..., None])


def reference_name(options: Options, name: str) -> str:
    return f"{name}-shape" if options.shape else name


def without_colours(source: Path, target: Path) -> Path:
    """The mesh of `source` in a file of its own without colours and textures."""
    import trimesh

    mesh = load_mesh(source).mesh
    target.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(target)
    return target


def make_reference(options: Options, name: str) -> tuple[float, float]:
    """Seconds to prepare and to fit; NaN for what was there."""
    from splatad.cli import main

    work = ["--workspace", str(options.work)]
    source = options.data / "meshes" / MESHES[name]
    reference = reference_name(options, name)
    seconds = [math.nan, math.nan]
    appearance = "shape" if options.shape else "colour"
    up = load_mesh(source).up
    if options.shape:
        source = without_colours(source, options.work / "bare" / f"{name}.ply")
    commands = [
        ["prepare", "mesh", str(source), "--name", reference, "--up", up, *work],
        ["fit", "--class", reference, "--appearance", appearance, *work],
    ]
    made = [
        options.work / "scenes" / reference / "transforms.json",
        options.work / "references" / reference / "calibration.json",
    ]
    for step, (command, result) in enumerate(zip(commands, made, strict=True)):
        if result.exists():
            continue
        started = time.perf_counter()
        if main(command) != 0:
            raise SystemExit(f"bench_mesh: splatad {' '.join(command)} failed")
        seconds[step] = time.perf_counter() - started
    return seconds[0], seconds[1]


def defective(
    mesh: Mesh, camera: Camera, good: MeshView, rng: np.random.Generator, kind: str, up: np.ndarray
) -> tuple[MeshView, np.ndarray]:
    """A twin's photo and the defect's mask."""
    for _ in range(200):
        twin = photograph((cut if kind == "cut" else bump)(mesh, rng), camera, up)
        mask = differing(good, twin)
        if int(mask.sum()) >= LEAST_PX:
            return twin, mask
    raise SystemExit(f"bench_mesh: no {kind} can be seen from this camera")


def try_part(options: Options, name: str, temporary: Path) -> list[Outcome]:
    """All photos of a part."""
    file = load_mesh(options.data / "meshes" / MESHES[name])
    mesh = file.mesh.transformed(world_of(file.mesh, file.up, "normalised"))
    inspector = Inspector.open(
        options.work / "references" / reference_name(options, name), torch.device("cpu")
    )
    shown, up = mesh, UP
    if options.paint:
        paint = np.random.default_rng([zlib.crc32(name.encode()), 77])
        mesh = painted(mesh, paint)
        up = paint.normal(size=3)
        up /= np.linalg.norm(up)
    if options.shape:  # what looks the same without colours is the same
        shown = bare(mesh)
    outcomes = []
    for number in range(options.cameras):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        camera = random_camera(mesh, rng)
        camera = farther(camera, options.far)
        good = photograph(mesh, camera, up)
        kind = ("cut", "bump")[number % 2]
        twin, mask = defective(mesh, camera, good, rng, kind, up)
        for defect, view in (("good", good), (kind, twin)):
            path = temporary / f"{name}-{number:02d}-{defect}.png"
            write_image(path, torch.from_numpy(on_white(view)))
            lens = replace(inspector.lens(path), camera=camera)
            inspection = inspector.inspect_image(path.name, inspector.read(path, lens), None, lens)
            located = inspection.located
            turn, same = math.nan, False
            if located is not None:
                found = located.camera.world_to_cam.double()
                turn = float(rotation_error_deg(found, camera.world_to_cam))
                same = turn < 1.0 or looks_the_same(shown, camera, camera.moved(found))
            outcomes.append(
                Outcome(
                    name, path.name, defect, int(mask.sum()) if defect != "good" else 0, inspection.verdict.name,
                    math.inf if inspection.score is None else inspection.score,
                    located is not None and located.believed, turn, same, sum(inspection.seconds.values()),
                )
            )  # fmt: skip
        if options.pictures is not None:
            write_image(
                options.pictures / f"{name}-{number:02d}-mask.png",
                torch.from_numpy(mask).float()[..., None].expand(-1, -1, 3),
            )
    return outcomes


def row(name: str, seconds: tuple[float, float], outcomes: list[Outcome]) -> list[str]:
    """One line of the table."""
    turns = sorted(o.turn_deg for o in outcomes if not math.isnan(o.turn_deg))
    bad = [o for o in outcomes if o.defect != "good"]
    good = [o for o in outcomes if o.defect == "good"]
    finite = [min(o.score, 1e9) for o in outcomes]
    value = auroc(np.array(finite), np.array([o.defect != "good" for o in outcomes]))
    return [
        name, *(f"{s:.0f}" if not math.isnan(s) else "kept" for s in seconds), str(len(outcomes)),
        str(sum(o.located(0.5) for o in outcomes)), str(sum(o.located(1.0) for o in outcomes)),
        str(sum(o.believed and (o.turn_deg < 1.0 or o.same_view) for o in outcomes)),
        f"{statistics.median(turns):.3f}" if turns else "-",
        str(sum(o.believed and o.turn_deg > 2.0 and not o.same_view for o in outcomes)),
        "-" if value is None else f"{100 * value:.2f}",
        f"{sum(o.verdict == 'NG' for o in bad)}/{len(bad)}", f"{sum(o.verdict == 'NG' for o in good)}/{len(good)}",
        str(sum(o.verdict == "CANNOT TELL" for o in outcomes)),
        f"{statistics.median(o.seconds for o in outcomes):.2f}",
    ]  # fmt: skip


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unknown = [name for name in options.mesh if name not in MESHES]
    if unknown:
        raise SystemExit(f"bench_mesh: no such mesh {', '.join(unknown)}; there are {', '.join(MESHES)}")
    console = Console(width=WIDTH)
    leave_cores_to_the_kernel(choose_device("cpu"))
    console.print(f"{machine()}; load {load()}")
    table = new_table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "part" else "right")
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="bench-mesh-") as temporary:
        folder = options.pictures or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.mesh:
            seconds = make_reference(options, name)
            outcomes = try_part(options, name, folder)
            found += outcomes
            cells = row(name, seconds, outcomes)
            table.add_row(*cells)
            console.print(
                "; ".join(f"{h} {c}" for h, c in zip(HEADINGS, cells, strict=True)),
                f"; load {load()}",
                highlight=False,
            )
    console.print(table)
    if options.json is not None:
        write_json(
            options.json,
            {"machine": machine(), "outcomes": [{k: _plain(v) for k, v in asdict(o).items()} for o in found]},
        )


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
