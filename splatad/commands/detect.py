"""`splatad detect`: verdicts on photos against fitted references, with pictures and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from detect.fuse import FusedPart, PartPhoto
    from splatad.identify import Identified
    from splatad.inspector import Inspection, Inspector
    from splatad.report import ReportPhoto, ReportRun

# Nothing here imports torch: the command line reads this class to print its help.


@dataclass(frozen=True)
class Detect:
    """Inspect photos: find each one's camera, compare it with the reference, and say OK, NG or CANNOT TELL.

    Where there are several references, which part a photo shows is found out too.
    """

    query: tuple[Path, ...]
    """Photos, or folders of photos."""
    class_: Annotated[
        tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="class")
    ] = ()
    """Name of the fitted reference in the workspace; one or more that the photos may show, all of them if not given."""
    reference: Path | None = None
    """A reference folder instead of those of the workspace; with --detector cmt also a mesh: .stl, .obj, .ply, .glb."""
    detector: Literal["difference", "cmt", "cfm", "difference+cfm"] = "difference"
    """difference: the reference's picture at the photo's camera; cmt: a network that compares shapes, from any side, of a
    mesh or of splats (in Python: detect.cmt.predict.Predictor), trained on chairs alone so far; cfm: for photos with a measured
    point at every pixel, whether both agree as on good parts (`splatad train cfm`); of a fitted reference, whether photo and
    splats agree so; difference+cfm: the difference, weighted by that."""
    network: Path | None = None
    """With --detector cmt: the .safetensors file of `splatad train cmt`, or its folder; else the one shipped. With --detector
    cfm: that of `splatad train cfm`; else the one of --class."""
    xyz: tuple[Path, ...] = ()
    """With --detector cfm: the photo's points, a TIFF of x, y, z in metres at every pixel, or the folder of them, by the photos'
    names; looked for beside the photo and in ../xyz if not given."""
    fusion: Literal["product", "sum", "max", "zmean", "photo", "shape"] = "product"
    """With --detector cfm: how the two directions become one map; see `splatad evaluate cfm`."""
    ground: Literal["auto", "keep", "remove"] = "auto"
    """With --detector cfm: take away what the part stands on, as in the training's photos; auto: where points reach the photo's
    border and the training's ground was taken away."""
    up: Literal["auto", "y", "z"] = "auto"
    """With --detector cmt: the part's upward axis; auto: y for .obj and .glb, z else."""
    good: tuple[Path, ...] = ()
    """With --detector cmt: photos of good parts, or folders of them; their scores set the limit for this part, which the
    network never saw, instead of the chairs'. (`calibrate --good` does so for --detector difference.)"""
    false_alarm_rate: float | None = None
    """With --good, or --detector cfm: share of good photos that may be called NG; 0.05, or what their number supports if that
    is more; of cfm the network's own."""
    workspace: Path | None = None
    """Where references lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/DATE-TIME-NAME if not given."""
    lens: Literal["auto", "reference", "exif", "free"] = "auto"
    """The photos' lens: as the reference's photos; from EXIF; found with the camera; auto: the reference's where the
    photo's shape fits and EXIF does not contradict, else EXIF's, else found. A mesh (--detector cmt) has no lens of its own."""
    same_part: bool = False
    """All photos show one part: also give one verdict and one set of defects in 3D (part.json)."""
    least_coverage: float | None = None
    """With --same-part: the part is CANNOT TELL instead of OK where the photos show less than this share of it, 0 to 1."""
    exit_status: bool = False
    """End with status 10 if any photo is NG, else 20 if any is CANNOT TELL, else 0; with --same-part by the part's
    verdict alone."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = Detect
_OF_A_KNOWN_PART = (
    "score",
    "score_divided_by",
    "threshold",
    "false_alarm_rate",
    "attainable_rate",
    "threshold_note",
)


def run(config: Detect) -> int:
    """0 once all photos have a verdict (see --exit-status); 3 where some could not be read.

    Raises: InputError where no photo can be read; UsageError for names that do not exist.
    """
    import sys
    from collections import Counter
    from collections.abc import Iterator
    from dataclasses import replace

    from prepare.errors import InputError, UsageError
    from prepare.image import list_images
    from prepare.mesh import MESH_SUFFIXES
    from splatad.defect_output import (
        PhotoDefects,
        photo_defects,
        report_part,
        write_photo_defects,
        write_run_defects,
    )
    from splatad.identify import Identified, Identifier
    from splatad.inspector import Inspector
    from splatad.reference_dir import choose_device, find_reference
    from splatad.report import write_report
    from splatad.run_output import (
        each_readable,
        output_folders,
        photo_names,
        verdict_row,
        write_photo,
        write_table,
    )
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    if not config.query:
        raise UsageError("--query: name at least one photo or a folder of photos")
    _check_flags(config)
    by_splats = config.detector == "difference+cfm" or _cfm_of_splats(config)
    if by_splats:
        _check_splat_flags(config)
    elif config.detector == "cfm":
        from splatad.cfm_detect import detect_points

        return detect_points(config)
    if config.detector == "cmt":
        from splatad.cmt_detect import detect_shapes

        return detect_shapes(config)
    if (
        config.reference is not None
        and config.reference.suffix.lower() in MESH_SUFFIXES
        and config.reference.is_file()
    ):
        raise UsageError(
            f"--reference {config.reference}: a mesh; use --detector cmt, or make splats of it with `splatad prepare mesh` "
            "and `splatad fit`"
        )
    if config.least_coverage is not None and not (config.same_part and 0.0 <= config.least_coverage <= 1.0):
        raise UsageError(
            f"--least-coverage {config.least_coverage}: a share from 0 to 1, of the part that --same-part photos show"
        )
    workspace = open_workspace(config.workspace)
    given_names = list(dict.fromkeys(name for group in config.class_ for name in group))
    names = given_names or workspace.reference_names()
    if config.reference is not None or len(names) <= 1:
        name = given_names[0] if given_names else None
        folders = [find_reference(workspace, name, config.reference)]
    else:
        folders = [find_reference(workspace, name, None) for name in names]
    if config.same_part and len(folders) > 1:
        raise UsageError(
            f"--same-part: {len(folders)} references, name the one part that the photos show with --class"
        )
    paths = list(dict.fromkeys(path for given in config.query for path in list_images(given)))
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    if by_splats:
        from splatad.cfm_splats import open_reference

        inspectors = {
            folder.name: Inspector(
                open_reference(folder, device, config.detector),  # type: ignore[arg-type]
                lens_mode=config.lens,
            )
            for folder in folders
        }
    else:
        inspectors = {folder.name: Inspector.open(folder, device, config.lens) for folder in folders}
    several = len(inspectors) > 1
    only = next(iter(inspectors.values()))
    identifier = Identifier(inspectors)
    what = f"{len(inspectors)}-references" if several else only.loaded.reference.name
    out = config.out or workspace.runs / f"{_now()}-{what}"
    terminal = Terminal()
    names_shown = photo_names(paths)
    places = output_folders(names_shown)
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    found: list[PhotoDefects] = []
    part_photos: list[PartPhoto] = []

    def identified(path: Path) -> Identified:
        if several:
            return identifier.identify(path)
        name = only.loaded.reference.name
        return Identified(name, name, only.inspect(path), ())

    def shown() -> Iterator[ReportPhoto]:
        for number, result in each_readable(
            terminal, "inspecting photos", paths, lambda number: identified(paths[number]), failures
        ):
            place = places[number]
            inspection = replace(result.inspection, name=names_shown[number])
            result = replace(result, inspection=inspection)
            loaded = inspectors[result.nearest].loaded if several and result.nearest else only.loaded
            write_photo(out / place, inspection, loaded, _document(result, inspectors))
            known_part = None if several and result.name is None else loaded.reference
            found.append(
                photo_defects(
                    inspection,
                    None if known_part is None else (result.name or known_part.name),
                    None if known_part is None else known_part.scale_to_mm,
                )
            )
            write_photo_defects(out / place, inspection, found[-1])
            if config.same_part:
                part_photos.append(_part_photo(inspection, only))
            row = verdict_row(inspection)
            known = {} if result.name is not None else {"score": ""}
            rows.append({"photo": row["photo"], "reference": result.name or ""} | row | known)
            yield _report_photo(result, inspectors)

    was_there = out.exists()
    part: FusedPart | None = None
    photos: Iterable[ReportPhoto] = shown()
    try:
        if config.same_part:
            photos = list(photos)  # one part's few photos: what they say together is known after the last
            part = _fuse(part_photos, only, config.least_coverage, out)
        report = _report(len(paths), inspectors, photos, device)
        if part is not None:
            report = replace(report, fused=report_part(part))
        write_report(report, out / "report.html")
    except InputError:
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    write_table(out / "verdicts.csv", rows)
    write_run_defects(out, found)
    width = max((len(str(row["reference"])) for row in rows), default=0) if several else 0
    for row in rows if len(rows) <= 20 else []:
        shows = f"{row['reference'] or '-':<{width}}  " if several else ""
        terminal.say(f"{row['verdict']:<12}{shows}{row['photo']}: {row['reason']}")
    counts = Counter(str(row["verdict"]) for row in rows)
    terminal.say(", ".join(f"{counts[name]} {name}" for name in ("OK", "NG", "CANNOT TELL") if counts[name]))
    if several:
        parts = Counter(str(row["reference"]) or "no known part" for row in rows)
        terminal.say("shown: " + ", ".join(f"{parts[name]} {name}" for name in sorted(parts)))
    if part is not None:
        for line in _part_lines(part, only.loaded.reference.scale_to_mm):
            terminal.say(line)
    terminal.say(f"report: {out / 'report.html'}")
    for failure in failures:
        print(f"splatad: {failure}", file=sys.stderr)
    if failures:
        return InputError.exit_status
    if config.exit_status and part is not None:
        return {"NG": 10, "CANNOT TELL": 20, "OK": 0}[part.verdict.name]
    if config.exit_status:
        return 10 if counts["NG"] else 20 if counts["CANNOT TELL"] else 0
    return 0


def _check_flags(config: Detect) -> None:
    """Raises: UsageError for a flag of another detector than the one asked for."""
    from prepare.errors import UsageError

    flags: dict[str, tuple[bool, tuple[str, ...]]] = {
        "--network": (config.network is not None, ("cmt", "cfm")),
        "--up": (config.up != "auto", ("cmt",)),
        "--good": (bool(config.good), ("cmt",)),
        "--false-alarm-rate": (config.false_alarm_rate is not None, ("cmt", "cfm")),
        "--xyz": (bool(config.xyz), ("cfm",)),
        "--fusion": (config.fusion != "product", ("cfm",)),
        "--ground": (config.ground != "auto", ("cfm",)),
    }
    for flag, (given, detectors) in flags.items():
        if given and config.detector not in detectors:
            other = "; `splatad calibrate` sets this" if flag in ("--good", "--false-alarm-rate") else ""
            raise UsageError(
                f"{flag}: for --detector {' and '.join(detectors)}, not {config.detector}{other}"
            )


def _cfm_of_splats(config: Detect) -> bool:
    """Whether --detector cfm means fitted references, not photos with points."""
    if config.detector != "cfm":
        return False
    if config.reference is not None:
        return True
    from splatad.cfm_splats import judges_by_splats
    from splatad.workspace import open_workspace

    names = tuple(name for group in config.class_ for name in group)
    return judges_by_splats(open_workspace(config.workspace), config.network, names, bool(config.xyz))


def _check_splat_flags(config: Detect) -> None:
    """Raises: UsageError for a flag of photos with points beside a fitted reference."""
    from prepare.errors import UsageError

    flags = {
        "--network": config.network is not None,
        "--xyz": bool(config.xyz),
        "--fusion": config.fusion != "product",
        "--ground": config.ground != "auto",
    }
    for flag, given in flags.items():
        if given:
            raise UsageError(f"{flag}: for photos with points; a fitted reference has none, leave it out")
    if config.false_alarm_rate is not None:
        raise UsageError("--false-alarm-rate: of a fitted reference `splatad calibrate` sets this")


def _part_photo(inspection: Inspection, inspector: Inspector) -> PartPhoto:
    """What stays in memory of a photo until all of the part's are inspected."""
    from detect.fuse import PartPhoto, surface_shown

    shown = None
    if inspection.located is not None and inspection.verdict.name != "CANNOT TELL":
        shown = surface_shown(inspector.loaded.reference, inspection.located.camera)
    return PartPhoto(inspection.name, inspection.verdict, inspection.score, shown, inspection.defects)


def _fuse(
    photos: Sequence[PartPhoto], inspector: Inspector, least_coverage: float | None, out: Path
) -> FusedPart:
    """The part's verdict and defects, written to part.json."""
    import splatad
    from detect.fuse import fuse, part_surface
    from splatad.defect_output import write_part

    reference = inspector.loaded.reference
    part = fuse(photos, inspector.loaded.calibration, part_surface(reference), least_coverage)
    write_part(out, part, reference.name, reference.scale_to_mm, splatad.__version__)
    return part


def _part_lines(part: FusedPart, scale_to_mm: float | None) -> list[str]:
    """The part's verdict for the terminal, a line for the verdict, each further reason and each defect."""
    from splatad.defect_output import fused_line

    first, *others = part.verdict.reasons
    return [
        f"the part: {part.verdict.name}: {first}",
        *(f"  {reason}" for reason in others),
        *(f"  {defect.number}. {fused_line(defect, scale_to_mm)}" for defect in part.defects),
    ]


def _document(result: Identified, inspectors: Mapping[str, Inspector]) -> dict[str, object]:
    """`verdict.json`; of several references also those looked at, and null for what goes with a part where none is known."""
    import splatad
    from splatad.inspector import verdict_document

    name = (
        result.nearest
        if result.nearest is not None and result.nearest in inspectors
        else next(iter(inspectors))
    )
    document = verdict_document(result.inspection, inspectors[name].loaded, splatad.__version__)
    if len(inspectors) == 1:
        return document
    document["reference"] = result.name
    if result.name is None:
        # The camera is against the nearest reference, for people to look at; a score would mean nothing.
        document |= dict.fromkeys(_OF_A_KNOWN_PART)
    document["nearest_reference"] = result.nearest
    document["candidates"] = [
        {"reference": c.name, "evidence": round(c.evidence, 4), "located": c.located}
        for c in result.candidates
    ]
    return document


def _report_photo(result: Identified, inspectors: Mapping[str, Inspector]) -> ReportPhoto:
    """The photo for the report; of several references its score and map are in multiples of its own threshold."""
    from dataclasses import replace

    from splatad.run_output import report_photo

    photo = report_photo(result.inspection)
    if len(inspectors) == 1:
        return photo
    numbers = dict(photo.numbers)
    if result.candidates:
        numbers["evidence"] = ", ".join(f"{c.name} {c.evidence:.2f}" for c in result.candidates[:3])
    if result.nearest is None:
        return replace(photo, numbers=numbers)
    unit = max(inspectors[result.nearest].loaded.calibration.threshold, 1e-12)
    return replace(
        photo,
        part=result.name,
        score=None if result.name is None or photo.score is None else photo.score / unit,
        anomaly_map=None if photo.anomaly_map is None else photo.anomaly_map / unit,
        defects=tuple(replace(defect, peak=defect.peak / unit) for defect in photo.defects),
        numbers=numbers,
    )


def _report(
    count: int, inspectors: Mapping[str, Inspector], photos: Iterable[ReportPhoto], device: torch.device
) -> ReportRun:
    import json

    from splatad.part_picture import PartPictures
    from splatad.report import ReportRun
    from splatad.run_output import footer, map_range

    loaded = {name: inspector.loaded for name, inspector in inspectors.items()}
    title = f"Inspection of {count} photo{'s' if count != 1 else ''}"
    first = next(iter(loaded.values()))
    if len(loaded) == 1:
        calibration = first.calibration
        return ReportRun(
            title=title,
            reference=first.reference.name,
            threshold=calibration.threshold,
            false_alarm_rate=calibration.false_alarm_rate,
            threshold_note=calibration.note,
            good_scores=calibration.good_scores,
            photos=photos,
            metrics=None,
            footer=footer(first, device),
            map_range=map_range(first),
            part_views={first.reference.name: PartPictures(first.reference).views},
            scale_to_mm=first.reference.scale_to_mm,
        )
    rates = {one.calibration.false_alarm_rate for one in loaded.values()}
    thresholds = {
        name: f"{one.calibration.threshold:.4g}; {one.calibration.note}" for name, one in loaded.items()
    }
    fits = {name: dict(one.reference.settings) for name, one in loaded.items()}
    return ReportRun(
        title=title,
        reference=", ".join(loaded),
        threshold=1.0,
        false_alarm_rate=rates.pop() if len(rates) == 1 else None,
        threshold_note="Scores here are multiples of the limit of the part that the photo shows; the limits, and where "
        "they come from, stand at the end of this page.",
        good_scores=tuple(
            score / max(one.calibration.threshold, 1e-12)
            for one in loaded.values()
            for score in one.calibration.good_scores
        ),
        photos=photos,
        metrics=None,
        footer=footer(first, device)
        | {"limits": "\n".join(f"{name}: {text}" for name, text in thresholds.items())}
        | {"fit": json.dumps(fits, indent=1)},
        map_range=(1 / 3, 2.0),
        several=True,
        part_views={name: PartPictures(one.reference).views for name, one in loaded.items()},
    )


def _now() -> str:
    import datetime

    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
