"""`splatad detect --detector cfm`: photos with a measured point at every pixel, against what good ones of the class taught."""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from detect.cfm.absolute import at_rate
from prepare.atomic_write import write_json
from prepare.errors import InputError, UsageError
from prepare.image import list_images
from splatad.cfm_inputs import find_network, open_checkpoint, trained_class
from splatad.cfm_inspector import CfmInspector, photos_alone, points_of
from splatad.cfm_output import cfm_document, cfm_report_photo, cfm_row, defect_rows, write_cfm_photo
from splatad.cmt_inputs import network_device
from splatad.report import ReportPhoto, ReportRun, write_report
from splatad.run_output import each_readable, output_folders, photo_names, write_table
from splatad.run_record import machine, versions
from splatad.terminal import Terminal
from splatad.workspace import open_workspace

if TYPE_CHECKING:
    from splatad.commands.detect import Detect


def detect_points(config: Detect) -> int:
    """0 once all photos have a verdict (see --exit-status); 3 where some could not be read.

    Raises: InputError where the network or all photos cannot serve; UsageError for flags that do not go with this detector;
    MissingPartError for weights of the features that are not there.
    """
    names = list(dict.fromkeys(name for group in config.class_ for name in group))
    if config.same_part or config.least_coverage is not None or config.reference is not None:
        raise UsageError(
            "--same-part, --least-coverage, --reference: not with --detector cfm, which has a network"
        )
    if len(names) > 1:
        raise UsageError(f"--class: one class with --detector cfm, got {', '.join(names)}")
    workspace = open_workspace(config.workspace)
    file = find_network(workspace, config.network, names[0] if names else None)
    checkpoint, features = open_checkpoint(file)
    device = network_device(config.device)
    scale = checkpoint.scales.get(config.fusion)
    if scale is not None and config.false_alarm_rate is not None:
        scale = at_rate(scale, config.false_alarm_rate)
    if scale is None and config.fusion == "zmean":
        raise UsageError(
            f"--fusion zmean: {file} has no good photos kept from the training; choose another fusion"
        )
    paths = photos_alone(list(dict.fromkeys(path for given in config.query for path in list_images(given))))
    if len(paths) > 1 and len(config.xyz) == 1 and not config.xyz[0].is_dir():
        raise UsageError(
            f"--xyz {config.xyz[0]}: one file for {len(paths)} photos; give the folder of their points"
        )
    inspector = CfmInspector(checkpoint, features, config.fusion, scale, config.ground, device)
    trained = trained_class(checkpoint)
    name = str(trained.get("name") or file.parent.name)
    terminal = Terminal()
    terminal.say(f"{name}: {file}, features {features.photo} and {features.shape}")
    out = config.out or workspace.runs / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
    network: dict[str, Any] = {
        "file": str(file.resolve()),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "class": name,
        "features": asdict(features),
    }
    rows: list[dict[str, object]] = []
    documents: list[dict[str, Any]] = []
    found: list[dict[str, object]] = []
    failures: list[str] = []
    places = output_folders(photo_names(paths))

    def photos() -> Iterator[ReportPhoto]:
        for number, result in each_readable(
            terminal,
            "comparing photos",
            paths,
            lambda number: inspector.inspect(paths[number], points_of(paths[number], config.xyz)),
            failures,
        ):
            document = cfm_document(result, scale, config.fusion, network)
            write_cfm_photo(out / places[number], result, scale, document)
            documents.append({"folder": places[number], **document})
            rows.append(cfm_row(result, scale))
            found.extend(defect_rows(result))
            yield cfm_report_photo(result, scale)

    was_there = out.exists()
    report = ReportRun(
        title=f"Inspection of {len(paths)} photo{'s' if len(paths) != 1 else ''}",
        reference=name,
        threshold=None if scale is None else scale.limit,
        false_alarm_rate=None if scale is None else scale.false_alarm_rate,
        threshold_note="Scores are standard deviations of good photos' pixels. "
        + ("There is no limit." if scale is None else f"The limit: {scale.note}."),
        good_scores=() if scale is None else scale.good_scores,
        photos=photos(),
        metrics=None,
        footer={
            "machine": machine(device),
            "versions": ", ".join(f"{one} {version}" for one, version in versions().items()),
            "network": json.dumps(network, indent=1),
            "training": json.dumps(
                {k: v for k, v in checkpoint.about.items() if k not in ("photos", "history")}, indent=1
            ),
        },
        map_range=(0.0, 1.0) if scale is None else (scale.limit / 3, 2 * scale.limit),
    )
    try:
        write_report(report, out / "report.html")
    except InputError:
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    write_table(out / "verdicts.csv", rows)
    write_table(out / "defects.csv", found)
    write_json(
        out / "results.json",
        {"format": "splatad-cfm-results", "version": 1, "photos": documents, "refused": failures},
    )
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
