"""`splatad detect`: verdicts on photos against a fitted reference, with pictures and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

# Nothing here imports torch: the command line reads this class to print its help.


@dataclass(frozen=True)
class Detect:
    """Inspect photos: find each one's camera, compare it with the reference, and say OK, NG or CANNOT TELL."""

    query: tuple[Path, ...]
    """Photos, or folders of photos."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of the fitted reference in the workspace; the only one if not given."""
    reference: Path | None = None
    """A reference folder instead of one of the workspace."""
    workspace: Path | None = None
    """Where references lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/DATE-TIME-NAME if not given."""
    exit_status: bool = False
    """End with status 10 if any photo is NG, else 20 if any is CANNOT TELL, else 0."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = Detect


def run(config: Detect) -> int:
    """0 once all photos have a verdict (see --exit-status); 3 where some could not be read.

    Raises: InputError where no photo can be read; UsageError for names that do not exist.
    """
    import sys
    from collections import Counter
    from collections.abc import Iterator

    from prepare.errors import InputError, UsageError
    from prepare.image import list_images
    from splatad.inspector import Inspection, Inspector
    from splatad.reference_dir import choose_device, find_reference
    from splatad.report import ReportPhoto, ReportRun, write_report
    from splatad.run_output import (
        folder_name,
        footer,
        map_range,
        photo_names,
        report_photo,
        verdict_row,
        write_photo,
        write_table,
    )
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    if not config.query:
        raise UsageError("--query: name at least one photo or a folder of photos")
    workspace = open_workspace(config.workspace)
    folder = find_reference(workspace, config.class_, config.reference)
    paths = list(dict.fromkeys(path for given in config.query for path in list_images(given)))
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    inspector = Inspector.open(folder, device)
    loaded = inspector.loaded
    out = config.out or workspace.runs / f"{_now()}-{loaded.reference.name}"
    terminal = Terminal()
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    taken: set[str] = set()

    def inspections() -> Iterator[Inspection]:
        """Each readable photo's inspection; the first photo of all must be readable or there is nothing to do."""
        from dataclasses import replace

        with terminal.bar("inspecting photos", len(paths)) as bar:
            for path, name in zip(paths, photo_names(paths), strict=True):
                try:
                    inspection = replace(inspector.inspect(path), name=name)
                except InputError as error:
                    if len(paths) == 1:
                        raise
                    failures.append(str(error))
                    bar.advance()
                    continue
                bar.advance()
                yield inspection

    def shown() -> Iterator[ReportPhoto]:
        for inspection in inspections():
            place = base = folder_name(inspection.name)
            number = 2
            while place in taken:
                place, number = f"{base}-{number}", number + 1
            taken.add(place)
            write_photo(out / place, inspection, loaded)
            rows.append(verdict_row(inspection))
            yield report_photo(inspection)
        if not rows:
            raise InputError(f"none of the {len(paths)} photos could be read: {failures[0]}")

    calibration = loaded.calibration
    report = ReportRun(
        title=f"Inspection of {len(paths)} photo{'s' if len(paths) != 1 else ''}",
        reference=loaded.reference.name,
        threshold=calibration.threshold,
        false_alarm_rate=calibration.false_alarm_rate,
        threshold_note=calibration.note,
        good_scores=calibration.good_scores,
        photos=shown(),
        metrics=None,
        footer=footer(loaded, device),
        map_range=map_range(loaded),
    )
    was_there = out.exists()
    try:
        write_report(report, out / "report.html")
    except InputError:
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    write_table(out / "verdicts.csv", rows)
    for row in rows if len(rows) <= 20 else []:
        terminal.say(f"{row['verdict']:<12}{row['photo']}: {row['reason']}")
    counts = Counter(str(row["verdict"]) for row in rows)
    terminal.say(", ".join(f"{counts[name]} {name}" for name in ("OK", "NG", "CANNOT TELL") if counts[name]))
    terminal.say(f"report: {out / 'report.html'}")
    for failure in failures:
        print(f"splatad: {failure}", file=sys.stderr)
    if failures:
        return InputError.exit_status
    if config.exit_status:
        return 10 if counts["NG"] else 20 if counts["CANNOT TELL"] else 0
    return 0


def _now() -> str:
    import datetime

    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
