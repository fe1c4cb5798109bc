"""Finds the camera of real photos under everything that makes it hard, and tells how often, how exactly, how fast.

    .venv/bin/python scripts/bench_pose.py [--rows plain roll exposure wrong speed ...] [--every 3] [--json OUT.json]

Fits its own references (default preset) into --work unless they are there. Photos of `mad_car` and `nerf_lego` come from
--data, a truck and a pump from our generator. Changed photos are written as 8-bit files and read as a user's are; what a
row does to a photo is said beside it. `located` is an error of the turn below 0.5 degrees and a believed camera;
`unflagged` is a believed camera more than 2 degrees off. Every random choice is drawn from the photo's name and the row.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from bench_rasterize import WIDTH, load, machine, new_table
from rich.console import Console
from torch import Tensor

from detect.metrics import object_shift_percent, rotation_error_deg
from pose.locate import LocateConfig, locate
from pose.se3 import rotation_from_vector
from prepare.atomic_write import write_json
from prepare.camera import Camera
from prepare.generate.objects import make_object
from prepare.generate.raycast import light, photograph
from prepare.image import read_image, write_image
from prepare.scene import load_query_image, load_scene
from splatad.commands.evaluate_pose import choose_photos
from splatad.finder import over_background
from splatad.inspector import Inspector
from splatad.lens import QueryLens
from splatad.reference_dir import choose_device
from splatad.threads import leave_cores_to_the_kernel

REPO = Path(__file__).resolve().parents[1]
LOCATED_DEG, WRONG_DEG = 0.5, 2.0
ROWS = (
    "plain",
    "sides",
    "roll",
    "zoom",
    "lens",
    "distance",
    "shift",
    "exposure",
    "cover",
    "wrong",
    "nothing",
    "cut",
    "lego",
    "speed",
)
FAMILIES = ("truck", "pump")
HEADINGS = (
    "row", "reference", "photos", "< 0.5 deg", "located", "median deg", "95 %", "most", "shift %", "unflagged",
    "cannot tell", "s",
)  # fmt: skip


Change = Callable[[Tensor, Camera, np.random.Generator], tuple[Tensor, Camera]]


@dataclass(frozen=True)
class Options:
    """What to try."""

    rows: tuple[str, ...] = ROWS
    """Which of the rows to run."""
    every: int = 1
    """Use every so manieth photo."""
    work: Path = REPO / "bench-work"
    """Workspace for scenes and fitted references; made where they are missing, kept for the next run."""
    data: Path = field(
        default_factory=lambda: Path(os.environ.get("SPLATAD_TESTDATA") or REPO.parent / "shared" / "data")
    )
    """Folder of the datasets."""
    json: Path | None = None
    """Also write every photo's outcome to this file."""


@dataclass(frozen=True)
class Case:
    """A photo whose camera is asked for."""

    name: str
    path: Path
    lens: Camera | None  # another lens than the reference's
    truth: Tensor | None  # world_to_cam; None: there is no right answer
    focal: float | None = None  # the true focal length in px, where it is to be found along


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    row: str
    reference: str
    name: str
    verdict: str
    believed: bool
    belief: float
    inliers: float
    overlap: float
    in_frame: float
    sigma_deg: float | None
    seconds: float
    turn_deg: float | None
    shift_percent: float | None
    reason: str
    focal_percent: float | None = None

    @property
    def located(self) -> bool:
        return self.believed and self.turn_deg is not None and self.turn_deg < LOCATED_DEG

    @property
    def unflagged(self) -> bool:
        return self.believed and (self.turn_deg is None or self.turn_deg > WRONG_DEG)


class Bench:
    """The references, the photos, and what was found."""

    def __init__(self, options: Options, console: Console) -> None:
        self.options, self.console = options, console
        self.temporary = tempfile.TemporaryDirectory(prefix="bench-pose-")
        self.outcomes: list[Outcome] = []
        self._inspectors: dict[str, Inspector] = {}

    def inspector(self, name: str) -> Inspector:
        """The fitted reference; made where it is missing."""
        if name not in self._inspectors:
            folder = self.options.work / "references" / name
            if not (folder / "calibration.json").exists():
                self._fit(name)
            self._inspectors[name] = Inspector.open(folder, torch.device("cpu"))
        return self._inspectors[name]

    def _fit(self, name: str) -> None:
        from splatad.cli import main

        work = ["--workspace", str(self.options.work)]
        if name == "nerf_lego":
            commands = [
                ["prepare", "nerf-synthetic", "--data", str(self.options.data / name), *work],
                ["fit", "--class", name, *work, "--size-px", "400", "--held-out-every", "5"],
            ]
        else:
            source = self.options.data / name
            commands = []
            if name in FAMILIES:
                source = self.options.work / "generated" / name
                commands = [["generate", "--family", name, "--out", str(source.parent)]]
            commands += [
                ["prepare", "mad-sim", "--data", str(source), *work],
                ["fit", "--class", name, *work, "--held-out-every", "8"],
            ]
        for command in commands:
            if main(command) != 0:
                raise SystemExit(f"bench_pose: splatad {' '.join(command)} failed")

    def photos(self, name: str) -> list[tuple[str, Path, Tensor]]:
        """Photos that were not fitted, with their cameras: test photos, else the views held out."""
        reference = self.inspector(name).loaded.reference
        _, photos = choose_photos(load_scene(Path(reference.scene)), reference, "auto")
        return [(photo.name, photo.path, photo.world_to_cam) for photo in photos[:: self.options.every]]

    def try_case(self, row: str, reference: str, case: Case) -> Outcome:
        inspector = self.inspector(reference)
        loaded = inspector.loaded
        image = (
            inspector.read(case.path)
            if case.lens is None
            else load_query_image(case.path, longest_px=loaded.reference.size_px, camera=case.lens)
        )
        lens = None
        if case.focal is not None:
            assert image.camera is not None
            lens = QueryLens(image.camera, True, None, "a guess")
        inspection = inspector.inspect_image(case.name, image, lens=lens)
        located = inspection.located
        turn = shift = focal = None
        if located is not None and case.focal is not None:
            focal = 100.0 * abs(located.camera.fl_x / case.focal - 1.0)
        if located is not None and case.truth is not None:
            found, truth = located.camera.world_to_cam.double(), case.truth.double()
            turn = float(rotation_error_deg(found, truth))
            shift = float(object_shift_percent(found, truth, loaded.reference.volume.centre.double()))
        seconds = inspection.seconds
        outcome = Outcome(
            row, reference, case.name, inspection.verdict.name,
            located is not None and located.believed,
            0.0 if located is None else located.belief,
            0.0 if located is None else located.inliers,
            0.0 if located is None else located.overlap,
            0.0 if located is None else located.in_frame,
            None if located is None or not math.isfinite(located.sigma_deg) else located.sigma_deg,
            seconds.get("coarse pose", 0.0) + seconds.get("fine pose", 0.0),
            turn, shift, inspection.verdict.reasons[0], focal,
        )  # fmt: skip
        self.outcomes.append(outcome)
        return outcome

    def write(self, row: str, name: str, rgb: Tensor) -> Path:
        path = Path(self.temporary.name) / f"{row}-{name.replace('/', '_')}.png"
        write_image(path, rgb.clamp(0, 1))
        return path

    def changed(
        self,
        row: str,
        reference: str,
        change: Callable[[Tensor, Camera, np.random.Generator], tuple[Tensor, Camera]],
    ) -> None:
        """Try every photo of `reference` after `change` (rgb over white, true camera, rng) -> (rgb, true camera)."""
        inspector = self.inspector(reference)
        for name, path, truth in self.photos(reference):
            rng = np.random.default_rng(zlib.crc32(f"{row} {name}".encode()))
            image = inspector.read(path)
            assert image.camera is not None
            photo = over_background(image, torch.ones(3))
            rgb, camera = change(photo, image.camera.moved(truth.float()), rng)
            lens = None if _same_lens(camera, image.camera) else camera
            self.try_case(row, reference, Case(name, self.write(row, name, rgb), lens, camera.world_to_cam))


def _same_lens(a: Camera, b: Camera) -> bool:
    return (a.fl_x, a.fl_y, a.cx, a.cy, a.width, a.height) == (b.fl_x, b.fl_y, b.cx, b.cy, b.width, b.height)


def warped(rgb: Tensor, source: Camera, target: Camera) -> Tensor:
    """The photo as `target` would have taken it from the same place: exact, for a camera that only turns or zooms."""
    y, x = torch.meshgrid(torch.arange(target.height) + 0.5, torch.arange(target.width) + 0.5, indexing="ij")
    rays = torch.stack(
        [(x - target.cx) / target.fl_x, (y - target.cy) / target.fl_y, torch.ones_like(x)], dim=-1
    )
    turn = source.world_to_cam[:3, :3] @ target.world_to_cam[:3, :3].T
    seen = rays @ turn.T
    u = source.fl_x * seen[..., 0] / seen[..., 2] + source.cx
    v = source.fl_y * seen[..., 1] / seen[..., 2] + source.cy
    grid = torch.stack([2 * u / source.width - 1, 2 * v / source.height - 1], dim=-1)
    planes = 1.0 - rgb.permute(2, 0, 1)[None]  # white outside the photo
    moved = F.grid_sample(planes, grid[None], mode="bicubic", padding_mode="zeros", align_corners=False)
    return (1.0 - moved[0].permute(1, 2, 0)).clamp(0, 1)


def turned(camera: Camera, vector: tuple[float, float, float]) -> Camera:
    """The camera after a turn about its own centre, radians about its own axes."""
    turn = torch.eye(4)
    turn[:3, :3] = rotation_from_vector(torch.tensor(vector))
    return camera.moved(turn @ camera.world_to_cam)


def roll(rgb: Tensor, camera: Camera, rng: np.random.Generator) -> tuple[Tensor, Camera]:
    """Rolled by any angle about the lens's axis."""
    target = turned(camera, (0.0, 0.0, float(rng.uniform(-math.pi, math.pi))))
    return warped(rgb, camera, target), target


def zoom(rgb: Tensor, camera: Camera, rng: np.random.Generator) -> tuple[Tensor, Camera]:
    """Taken through a lens 1/1.4 to 1/0.7 times as long: the size of a part at 0.7 to 1.4 times the distance."""
    factor = 1.0 / float(rng.uniform(0.7, 1.4))
    target = replace(camera, fl_x=camera.fl_x * factor, fl_y=camera.fl_y * factor)
    return warped(rgb, camera, target), target


def unknown_lens(bench: Bench) -> None:
    """Zoomed by 1/1.3 to 1.3 while the reference's lens is given, the focal length to be found along."""
    inspector = bench.inspector("mad_car")
    for name, path, truth in bench.photos("mad_car"):
        rng = np.random.default_rng(zlib.crc32(f"lens {name}".encode()))
        image = inspector.read(path)
        assert image.camera is not None
        camera = image.camera.moved(truth.float())
        factor = math.exp(rng.uniform(-math.log(1.3), math.log(1.3)))
        target = replace(camera, fl_x=camera.fl_x * factor, fl_y=camera.fl_y * factor)
        rgb = warped(over_background(image, torch.ones(3)), camera, target)
        bench.try_case(
            "lens", "mad_car", Case(name, bench.write("lens", name, rgb), None, truth.float(), target.fl_x)
        )


def shifted(rgb: Tensor, camera: Camera, rng: np.random.Generator) -> tuple[Tensor, Camera]:
    """The camera turned so that the image moves by 15 % of the frame, any direction."""
    angle = float(rng.uniform(-math.pi, math.pi))
    by = math.atan(0.15 * camera.width / camera.fl_x)
    target = turned(camera, (by * math.sin(angle), by * math.cos(angle), 0.0))
    return warped(rgb, camera, target), target


def exposure(rgb: Tensor, camera: Camera, rng: np.random.Generator) -> tuple[Tensor, Camera]:
    """Exposure 0.6 to 1.6 and each channel +-15 %, in linear light, clipped as a sensor clips."""
    gain = math.exp(rng.uniform(math.log(0.6), math.log(1.6))) * (1.0 + rng.uniform(-0.15, 0.15, 3))
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (linear * torch.tensor(gain, dtype=rgb.dtype)).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055), camera


def cover(rgb: Tensor, camera: Camera, rng: np.random.Generator) -> tuple[Tensor, Camera]:
    """A square of one colour over 5 to 20 % of the part, anywhere on it."""
    part = (rgb - 1.0).abs().amax(dim=-1) > 0.02
    rows, columns = torch.nonzero(part, as_tuple=True)
    pick = int(rng.integers(len(rows)))
    share = float(rng.uniform(0.05, 0.20))
    colour = torch.tensor(rng.uniform(0, 1, 3), dtype=rgb.dtype)
    row, column = int(rows[pick]), int(columns[pick])
    out = rgb.clone()
    for half in range(1, max(rgb.shape[:2])):
        top, left = max(0, row - half), max(0, column - half)
        area = (slice(top, row + half + 1), slice(left, column + half + 1))
        if int(part[area].sum()) >= share * int(part.sum()):
            break
        chosen = area
        out = rgb.clone()
        out[chosen] = colour
    return out, camera


def cut(rgb: Tensor, camera: Camera, rng: np.random.Generator) -> tuple[Tensor, Camera]:
    """The camera turned until half of the part's pixels have left the photo, any direction."""
    part = int(((rgb - 1.0).abs().amax(dim=-1) > 0.02).sum())
    angle = float(rng.uniform(-math.pi, math.pi))
    low, high = 0.0, 0.6
    for _ in range(12):
        by = 0.5 * (low + high)
        target = turned(camera, (by * math.sin(angle), by * math.cos(angle), 0.0))
        moved = warped(rgb, camera, target)
        left = int(((moved - 1.0).abs().amax(dim=-1) > 0.02).sum())
        low, high = (by, high) if left > 0.5 * part else (low, by)
    return moved, target


def sides(bench: Bench) -> None:
    """Photos from sides the reference does not show: in the azimuth gap, near a pole; and the held-out ones there."""
    inspector = bench.inspector("mad_car")
    reference = inspector.loaded.reference
    scene = load_scene(Path(reference.scene))
    centre = reference.volume.centre
    kept = {view.name for view in reference.views if view.held_out}
    everything = [(q.name, q.image_path, q.world_to_cam) for q in scene.queries if q.world_to_cam is not None]
    everything += [(v.name, v.image_path, v.camera.world_to_cam) for v in scene.views if v.name in kept]
    for name, path, truth in everything[:: bench.options.every]:
        place = torch.linalg.inv(truth.double())[:3, 3] - centre
        elevation = math.degrees(math.asin(float(place[2] / place.norm())))
        azimuth = math.degrees(math.atan2(float(place[1]), float(place[0])))
        if 80.0 < azimuth < 120.0 or abs(elevation) > 65.0:
            bench.try_case("sides", "mad_car", Case(name, path, None, truth.float()))


def distance(bench: Bench) -> None:
    """Photos of the generated parts taken anew from 0.7 to 1.4 times the distance, looking beside the centre, rolled."""
    for family in FAMILIES:
        inspector = bench.inspector(family)
        reference = inspector.loaded.reference
        assembly = make_object(family, 0)  # type: ignore[arg-type]
        maps = light(assembly)
        for name, _, truth in bench.photos(family)[::2]:
            rng = np.random.default_rng(zlib.crc32(f"distance {name}".encode()))
            factor = float(rng.uniform(0.7, 1.4))
            pose = truth.float().clone()
            pose[:3, 3] *= factor
            camera = reference.camera.moved(pose)
            view = photograph(assembly, maps, camera)
            rgb = torch.as_tensor(np.asarray(view.rgb), dtype=torch.float32)
            bench.try_case(
                "distance", family, Case(name, bench.write(f"distance-{family}", name, rgb), None, pose)
            )


def wrong(bench: Bench) -> None:
    """Each object's photos against each other's reference."""
    names = ("mad_car", "nerf_lego", *FAMILIES)
    for shown in names:
        for name, path, _ in bench.photos(shown)[::3]:
            for other in names:
                if other != shown:
                    lens = bench.inspector(other).loaded.reference.camera
                    bench.try_case("wrong", other, Case(f"{shown}/{name}", path, lens, None))


def nothing(bench: Bench) -> None:
    """Blank, gradient, noise of several grains, blobs of the reference's colours, and crops of photos of other scenes."""
    inspector = bench.inspector("mad_car")
    width, height = inspector.loaded.reference.camera.width, inspector.loaded.reference.camera.height
    pictures: list[tuple[str, Tensor]] = []
    for grey in (0.0, 0.5, 1.0):
        pictures.append((f"blank-{grey}", torch.full((height, width, 3), grey)))
    ramp = torch.linspace(0, 1, width)[None, :, None].expand(height, -1, 3).contiguous()
    pictures.append(("gradient", ramp))
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        grain = (1, 4, 16, 60)[seed % 4]
        small = torch.rand(1, 3, max(2, height // grain), max(2, width // grain), generator=generator)
        noise = F.interpolate(small, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
        pictures.append((f"noise-{grain}-{seed}", noise.contiguous()))
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        blob = ((x / (0.4 + 0.03 * seed)) ** 2 + (y / 0.5) ** 2 < 1.0)[..., None].float()
        pictures.append((f"blob-{grain}-{seed}", 1.0 - blob + blob * noise))
    for path in sorted((bench.options.data / "fox" / "images").glob("*"))[::6]:
        decoded = read_image(path).rgb
        pictures.append((f"fox-{path.stem}", decoded[300:1380, :1080].contiguous()))
    for name, rgb in pictures:
        bench.try_case("nothing", "mad_car", Case(name, bench.write("nothing", name, rgb), None, None))


def speed(bench: Bench) -> list[dict[str, object]]:
    """Our refinement, Adam and SplatPose's recipe on the same photos in turn, from the same rough cameras."""
    inspector = bench.inspector("mad_car")
    loaded = inspector.loaded
    reference = loaded.reference
    rows: dict[str, list[tuple[float, float]]] = {"levenberg": [], "adam": [], "splatpose": []}
    for _name, path, truth in bench.photos("mad_car")[::4]:
        image = inspector.read(path)
        assert image.camera is not None
        photo = over_background(image, reference.background)
        for refine, found in rows.items():
            started = time.perf_counter()
            located = locate(
                reference, loaded.index, loaded.levels, photo, image.alpha, image.camera,
                config=LocateConfig(refine=refine), limits=loaded.calibration.belief,  # type: ignore[arg-type]
            )  # fmt: skip
            assert located is not None
            error = float(rotation_error_deg(located.camera.world_to_cam.double(), truth.double()))
            found.append((time.perf_counter() - started, error))
    ours = statistics.median(s for s, _ in rows["levenberg"])
    return [
        {
            "refine": refine,
            "photos": len(found),
            "seconds": statistics.median(s for s, _ in found),
            "times ours": statistics.median(s for s, _ in found) / ours,
            "median deg": statistics.median(e for _, e in found),
            "failures": sum(e > LOCATED_DEG for _, e in found),
        }
        for refine, found in rows.items()
    ]


def summary(outcomes: list[Outcome]) -> list[str]:
    """One line of the table."""
    posed = [o for o in outcomes if o.turn_deg is not None]
    turns = sorted(o.turn_deg for o in posed if o.turn_deg is not None)
    shifts = sorted(o.shift_percent for o in posed if o.shift_percent is not None)
    asked = len(outcomes)

    def at(values: list[float], share: float) -> str:
        return f"{values[min(len(values) - 1, int(share * len(values)))]:.3f}" if values else "-"

    return [
        str(asked),
        f"{sum(t < LOCATED_DEG for t in turns)}" if turns else "-",
        f"{sum(o.located for o in outcomes)}" if turns else "-",
        at(turns, 0.5), at(turns, 0.95), at(turns, 1.0), at(shifts, 0.5),
        str(sum(o.unflagged for o in outcomes)),
        str(sum(o.verdict == "CANNOT TELL" for o in outcomes)),
        f"{statistics.median(o.seconds for o in outcomes):.2f}",
    ]  # fmt: skip


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        raise SystemExit(f"bench_pose: no such row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    console = Console(width=WIDTH)
    leave_cores_to_the_kernel(choose_device("cpu"))
    bench = Bench(options, console)
    console.print(f"{machine()}; load {load()}")
    table = new_table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    runs: dict[str, Callable[[], None]] = {
        "plain": lambda: bench.changed("plain", "mad_car", lambda rgb, camera, _: (rgb, camera)),
        "sides": lambda: sides(bench),
        "roll": lambda: bench.changed("roll", "mad_car", roll),
        "zoom": lambda: bench.changed("zoom", "mad_car", zoom),
        "lens": lambda: unknown_lens(bench),
        "distance": lambda: distance(bench),
        "shift": lambda: bench.changed("shift", "mad_car", shifted),
        "exposure": lambda: bench.changed("exposure", "mad_car", exposure),
        "cover": lambda: bench.changed("cover", "mad_car", cover),
        "wrong": lambda: wrong(bench),
        "nothing": lambda: nothing(bench),
        "cut": lambda: bench.changed("cut", "mad_car", cut),
        "lego": lambda: bench.changed("lego", "nerf_lego", lambda rgb, camera, _: (rgb, camera)),
    }
    for row in options.rows:
        if row == "speed":
            continue
        runs[row]()
        mine = [o for o in bench.outcomes if o.row == row]
        for reference in dict.fromkeys(o.reference for o in mine):
            table.add_row(row, reference, *summary([o for o in mine if o.reference == reference]))
        focal = [o.focal_percent for o in mine if o.focal_percent is not None]
        found = (
            f"; focal length off by {statistics.median(focal):.2f} %, at most {max(focal):.2f} %"
            if focal
            else ""
        )
        console.print(f"{row}: {len(mine)} photos{found}", highlight=False)
    console.print(table)
    compared: list[dict[str, object]] = []
    if "speed" in options.rows:
        compared = speed(bench)
        table = new_table()
        for heading in compared[0]:
            table.add_column(heading, justify="right")
        for entry in compared:
            table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in entry.values()))
        console.print(table)
    if options.json is not None:
        write_json(
            options.json,
            {"machine": machine(), "outcomes": [asdict(o) for o in bench.outcomes], "speed": compared},
        )


if __name__ == "__main__":
    main()
