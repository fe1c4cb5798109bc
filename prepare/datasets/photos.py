"""Plain photos of a part, or a video round it: cameras and points by structure from motion, all the rest guessed.

The scene's world has z up, the cameras' common focus at the origin and the median camera 3 units from it. Lens
distortion stays in transforms.json, as nerfstudio has it. What was made on the way lies in the scene's `sfm/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch

from prepare.camera import Camera, lens_keys, to_opengl_cam_to_world
from prepare.datasets.scene_folder import Progress, SceneWriter, no_progress, share_intrinsics
from prepare.errors import InputError, UsageError
from prepare.exif import focal_from_exif, lens_from_exif
from prepare.heic import HEIC_SUFFIXES, convert_heic
from prepare.image import IMAGE_SUFFIXES, image_size, natural_key
from prepare.known_length import Mark, measure, parse_mark
from prepare.orbit import NEAR_DEG, Coverage, Placement, cover, place
from prepare.photo_choice import Dropped, Look, choose_photos, look_at_photos
from prepare.points import PointCloud, write_points
from prepare.still_camera import (
    LEAST_GROUP,
    StillGroup,
    groups_of_still_camera,
    is_turntable,
    write_turning_masks,
)
from prepare.structure_from_motion import (
    PosedPhoto,
    Reconstruction,
    SfmConfig,
    SfmPhoto,
    load_colmap,
    reconstruct,
)
from prepare.undistort import Distortion
from prepare.video import VIDEO_SUFFIXES, sharpest_frames

_LENS = ("camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "p1", "p2")
_LEAST_SHARE = 0.15  # of the photos: fewer that fit together are no reference
_LEAST_SEEN = 3  # photos that must show a point of the cloud; points of two are often wrong
_NAMES_SHOWN = 5
Turntable = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class Scale:
    """How long the scene's unit is."""

    mm_per_unit: float | None  # None: not known
    source: str  # in words


def prepare_photos(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    name: str | None = None,
    copy: bool = False,
    frames: int = 120,
    queries: Path | None = None,
    length_mm: float | None = None,
    between: Sequence[str] = (),
    scale_to_mm: float | None = None,
    keep_all: bool = False,
    turntable: Turntable = "auto",
    kind: str = "photos",
    defect_mask: Callable[[PurePosixPath], Path | None] = lambda query: None,
    sfm: SfmConfig | None = None,
    progress: Progress = no_progress,
) -> list[Path]:
    """The one scene folder written, called `name` (else as `data`), from a folder of photos (with its subfolders) or a
    video, of which the `frames` sharpest frames are taken.

    Blurred photos and doubles are left out unless `keep_all`. Where the camera stood still and the part turned
    (`turntable`: "auto" finds out), cameras are found from what turns alone, masks of that are written, and photos from
    places of less than LEAST_GROUP photos are left out. `queries` is a folder of photos to inspect, labelled by
    its subfolders. `length_mm` is the distance of the two points that each of `between` marks (see `known_length`);
    `scale_to_mm` gives the unit in mm instead. `kind` is the command's name, and `defect_mask` finds the true defect of a
    photo to inspect, for datasets that have them. What is found is told in prepare.json, in words under "summary".
    Raises: UsageError for flags that do not fit together; MissingPartError without pycolmap, or without the plugin that
    a video or HEIC needs; InputError for photos that cannot be read or do not fit together.
    """
    marks = _check_scale(length_mm, between, scale_to_mm)
    source = data.resolve()
    if not source.exists():
        raise InputError(f"{data}: no such folder or video; give a folder of photos, or a video file")
    is_video = source.is_file()
    if is_video and source.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(
            f"{data}: is one file and no video; give a folder of 20 to 60 photos, or one of {', '.join(VIDEO_SUFFIXES)}"
        )
    listed = [] if is_video else find_photos(source, without=None if queries is None else queries.resolve())
    if not is_video and len(listed) < 2:
        raise InputError(f"{data}: holds one photo only, {listed[0]}; take 20 to 60 all round the part")
    asked = [] if queries is None else find_photos(queries.resolve())
    load_colmap()

    scene_name = name or source.stem
    found: dict[str, Any] = {}
    writer = SceneWriter(scene_folder(scene_name), source, kind, copy, found)

    def report(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"{scene_name}: {what}", done, total)

    if is_video:
        made = sharpest_frames(source, writer.folder / "images", frames, report("frames"))
        photos = {path.name: path for path in made}
    else:
        photos = {}
        for relative in listed:
            photos[relative.as_posix()] = _readable(source / relative, writer.folder / "images" / relative)
    looks = look_at_photos(photos, lambda done: report("photos")(done, len(photos)))
    kept, dropped = choose_photos(looks, keep_all=keep_all)
    _check_enough(data, len(photos), kept, dropped)

    still = _still_places(data, {photo: looks[photo] for photo in kept}, turntable)
    masks: dict[str, Path] = {}
    if still:
        placed = {photo for group in still for photo in group.names}
        alone = f"elsewhere: less than {LEAST_GROUP} photos from that place"
        dropped = [*dropped, *(Dropped(photo, alone) for photo in kept if photo not in placed)]
        kept = [photo for photo in kept if photo in placed]
        masks = write_turning_masks(
            still, photos, writer.folder / "masks", lambda done: report("masks")(done, len(kept))
        )

    sfm_photos = [
        SfmPhoto(photo, photos[photo], lens, focal, masks.get(photo))
        for photo, (lens, focal) in _lenses({photo: photos[photo] for photo in kept}, is_video).items()
    ]
    reconstruction = reconstruct(
        sfm_photos,
        writer.folder / "sfm",
        ordered=is_video,
        config=replace(sfm or SfmConfig(), focal_fixed=len(still) == 1),
        progress=lambda what, done, total: progress(f"{scene_name}: {what}", done, total),
    )
    registered = len(reconstruction.photos)
    if registered < _LEAST_SHARE * len(kept):
        raise InputError(
            f"{data}: only {registered} of {len(kept)} photos fit together; take them in steps of about 10 degrees,"
            " sharp, the part on a printed page or patterned cloth that "
            + (
                "turns with it (the camera stood still: only what turns was looked at)"
                if still
                else "does not move against it"
            )
        )
    placement = place(
        torch.stack([photo.camera.world_to_cam for photo in reconstruction.photos]), reconstruction.points
    )
    scale = _scale(reconstruction, placement, marks, length_mm, scale_to_mm)
    cameras = [
        photo.camera.moved(placement.place_camera(photo.camera.world_to_cam))
        for photo in reconstruction.photos
    ]
    coverage = cover(
        [photo.name for photo in reconstruction.photos], torch.stack([camera.centre for camera in cameras])
    )

    for photo, camera in zip(reconstruction.photos, cameras, strict=True):
        writer.frames.append(
            {
                "file_path": _placed(writer, photo.path, PurePosixPath("images") / photo.name),
                "transform_matrix": to_opengl_cam_to_world(camera.world_to_cam).tolist(),
                **({} if photo.name not in masks else {"mask_path": _placed_mask(writer, masks[photo.name])}),
                **lens_entry(camera, photo.distortion),
            }
        )
    for relative in asked:
        assert queries is not None
        where = PurePosixPath("queries") / relative
        path = _readable(queries.resolve() / relative, writer.folder / where)
        mask = defect_mask(relative)
        writer.queries.append(
            {
                "file_path": _placed(writer, path, where),
                "label": relative.parts[0] if len(relative.parts) > 1 else "",
                "mask_path": None if mask is None else writer.place(mask, _mask_name(where, mask)),
            }
        )
    cloud = _cloud(reconstruction, placement)
    write_points(writer.folder / "points.ply", cloud)

    header = {**share_intrinsics(writer.frames, _LENS), "ply_file_path": "points.ply"}
    if scale.mm_per_unit is not None:
        header["scale_to_mm"] = scale.mm_per_unit
    names = {photo.name for photo in reconstruction.photos}
    not_registered = [photo for photo in kept if photo not in names]
    found.update(
        {
            "photos": len(photos),
            "dropped": [asdict(one) for one in dropped],
            "registered": registered,
            "not_registered": not_registered,
            "turntable": [list(group.names) for group in still],
            "mapper": reconstruction.mapper,
            "matched_pairs": reconstruction.pairs,
            "groups_apart": list(reconstruction.apart),
            "reprojection_error_px": reconstruction.error_px,
            "points": len(cloud.positions),
            "focus_from": placement.focus_from,
            "up_from": placement.up_from,
            "unit": "a third of the median camera's distance from the focus",
            "scale_to_mm": scale.mm_per_unit,
            "scale_from": scale.source,
            "coverage": asdict(coverage),
            "summary": [
                *_still_words(still, all(photo.focal_px is not None for photo in sfm_photos)),
                *_summary(reconstruction, len(kept), not_registered, dropped, coverage, placement, scale),
            ],
        }
    )
    return [writer.finish(header)]


def find_photos(folder: Path, *, without: Path | None = None) -> list[PurePosixPath]:
    """The photos below `folder`, relative to it, 2 before 10; hidden ones and those in `without` are passed over.

    Raises: InputError where there is no folder, or no photo in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of photos")
    suffixes = (*IMAGE_SUFFIXES, *HEIC_SUFFIXES)
    found = [
        PurePosixPath(path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (without is None or not path.is_relative_to(without))
    ]
    if not found:
        raise InputError(
            f"{folder}: no photos in it (looked for {', '.join(suffixes)}); give the folder that holds them"
        )
    return sorted(found, key=lambda path: natural_key(path.as_posix()))


def lens_entry(camera: Camera, distortion: Distortion) -> dict[str, Any]:
    """nerfstudio's keys for a lens; lengths in px of the whole upright photo."""
    return {
        "camera_model": "OPENCV",
        **lens_keys(camera),
        **{key: getattr(distortion, key) for key in ("k1", "k2", "p1", "p2")},
    }


def _check_scale(length_mm: float | None, between: Sequence[str], scale_to_mm: float | None) -> list[Mark]:
    for flag, value in (("--length-mm", length_mm), ("--scale-to-mm", scale_to_mm)):
        if value is not None and not 0 < value < 1e9:
            raise UsageError(f"{flag}: must be above 0, got {value}")
    if (length_mm is None) != (not between):
        raise UsageError(
            "--length-mm and --between: belong together; --length-mm 120 --between IMG_1.jpg:812,440:1033,462 says that"
            " these two points of the part are 120 mm apart"
        )
    if length_mm is not None and scale_to_mm is not None:
        raise UsageError("--scale-to-mm: says the scale a second time; leave it or --length-mm out")
    return [parse_mark(text) for text in between]


def _readable(photo: Path, target: Path) -> Path:
    """The photo, or the JPEG file beside `target` that it was converted to."""
    if photo.suffix.lower() not in HEIC_SUFFIXES:
        return photo
    return convert_heic(photo, target.with_name(target.name + ".jpg"))


def _still_places(data: Path, looks: dict[str, Look | InputError], turntable: Turntable) -> list[StillGroup]:
    """The places where the camera stood still while the part turned; none where it went round the part.

    Raises: InputError where the user says that it stood still and no place shows it.
    """
    if turntable == "no":
        return []
    groups = groups_of_still_camera({name: look for name, look in looks.items() if isinstance(look, Look)})
    if turntable == "auto":
        return groups if is_turntable(groups, len(looks)) else []
    if not groups:
        raise InputError(
            f"{data}: --turntable yes, but no {LEAST_GROUP} photos show the same background; fix the camera and turn the"
            " part only, or leave the flag out"
        )
    return groups


def _still_words(still: Sequence[StillGroup], focal_known: bool) -> list[str]:
    if not still:
        return []
    places = "in one place" if len(still) == 1 else f"in {len(still)} places"
    count = sum(len(group.names) for group in still)
    return [
        f"the camera stood still {places} while the part turned: {count} masks made of what turns, cameras from that"
        " alone (--turntable no if that is wrong)",
        *(
            [
                "photos from one height do not tell focal length from tilt, and EXIF says neither: shapes may come out squeezed;"
                " add a second height, or photos with EXIF"
            ]
            if len(still) == 1 and not focal_known
            else []
        ),
    ]


def _placed_mask(writer: SceneWriter, mask: Path) -> str:
    return mask.relative_to(writer.folder).as_posix()


def _placed(writer: SceneWriter, path: Path, where: PurePosixPath) -> str:
    """The photo's name in the scene; frames and converted photos lie there already."""
    if path.is_relative_to(writer.folder):
        return path.relative_to(writer.folder).as_posix()
    return writer.place(path, where)


def _mask_name(query: PurePosixPath, mask: Path) -> PurePosixPath:
    return PurePosixPath("ground_truth") / query.relative_to("queries").with_suffix(mask.suffix)


def _check_enough(data: Path, count: int, kept: Sequence[str], dropped: Sequence[Dropped]) -> None:
    if len(kept) >= 2:
        return
    reasons = Counter(one.reason.split()[0].rstrip(":") for one in dropped)
    if reasons["unreadable"] == count:
        first = dropped[0].reason.removeprefix("unreadable: ")
        raise InputError(f"{data}: none of its {count} photos can be read; the first: {first}")
    if reasons["double"] == count - 1:
        raise InputError(
            f"{data}: all {count} photos show the same picture; move the camera round the part in steps of about 10 degrees"
        )
    told = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    raise InputError(
        f"{data}: {len(kept)} of {count} photos can be used ({told}); take new ones, or keep them all with --keep-all"
    )


def _lenses(photos: dict[str, Path], is_video: bool) -> dict[str, tuple[str, float | None]]:
    """For each photo the key of its lens, and its focal length in px if EXIF tells it.

    Photos of one folder share a lens where EXIF says the same of it, or says nothing and all of these are of one size
    (either way up); else each has its own.
    """
    if is_video:
        return dict.fromkeys(photos, ("video", None))
    folders = {name: PurePosixPath(name).parent.as_posix() for name in photos}
    told = {name: lens_from_exif(path) for name, path in photos.items()}
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name, path in photos.items():
        if told[name] is None:
            shapes.setdefault(folders[name], set()).add(tuple(sorted(image_size(path))))
    lenses = {}
    for name, path in photos.items():
        if told[name] is not None:
            key = f"{folders[name]}: {told[name]}"
        elif len(shapes[folders[name]]) == 1:
            key = folders[name]
        else:
            key = f"photo {name}"
        lenses[name] = key, focal_from_exif(path)
    return lenses


def _scale(
    reconstruction: Reconstruction,
    placement: Placement,
    marks: Sequence[Mark],
    length_mm: float | None,
    scale_to_mm: float | None,
) -> Scale:
    if scale_to_mm is not None:
        return Scale(scale_to_mm, "--scale-to-mm")
    if length_mm is None:
        return Scale(None, "not known")
    measured = measure(reconstruction, marks)
    how = (
        "one photo and the points beside"
        if len(marks) == 1
        else f"{len(marks)} photos, {measured.off_px:.1f} px off"
    )
    return Scale(
        length_mm / (measured.length * placement.scale), f"{length_mm:g} mm between two points ({how})"
    )


def _cloud(reconstruction: Reconstruction, placement: Placement) -> PointCloud:
    """The points that enough photos show, placed; all of them where these are few."""
    seen = torch.zeros(len(reconstruction.points), dtype=torch.int64)
    for photo in reconstruction.photos:
        seen.index_add_(0, photo.observed, torch.ones_like(photo.observed))
    keep = seen >= _LEAST_SEEN
    if int(keep.sum()) < 100:
        keep = torch.ones_like(keep)
    return PointCloud(
        placement.place_points(reconstruction.points[keep]).float(), reconstruction.colours[keep]
    )


def _summary(
    reconstruction: Reconstruction,
    kept: int,
    not_registered: Sequence[str],
    dropped: Sequence[Dropped],
    coverage: Coverage,
    placement: Placement,
    scale: Scale,
) -> list[str]:
    lines = []
    if dropped:
        reasons = Counter(one.reason.split()[0].rstrip(":") for one in dropped)
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        lines.append(f"left out: {told} ({_shown([one.name for one in dropped])})")
    remarks = "; ".join(coverage.remarks) or "photos all round"
    lines.append(f"{len(reconstruction.photos)} of {kept} registered; {remarks}")
    if not_registered:
        lines.append(
            f"not registered: {_shown(not_registered)}; photos between these and the others would help"
        )
    if reconstruction.apart:
        groups = ", ".join(map(str, reconstruction.apart))
        lines.append(f"photos in other groups that do not connect: {groups}")
    lines.append(
        f"{round(100 * coverage.sphere_share)} % of all directions within {NEAR_DEG:g} degrees of a photo;"
        f" heights {round(coverage.lowest_deg)} to {round(coverage.highest_deg)} degrees,"
        f" widest gap around {round(coverage.widest_gap_deg)}"
    )
    lens = Counter(_lens_words(photo) for photo in reconstruction.photos).most_common()
    lines.append(
        f"{reconstruction.mapper} mapping, {reconstruction.error_px:.2f} px off on average;"
        f" {lens[0][0]}" + (f", and {len(lens) - 1} other lenses" if len(lens) > 1 else "")
    )
    if scale.mm_per_unit is None:
        lines.append("scale not known: sizes come in units; give --length-mm and --between for millimetres")
    else:
        lines.append(f"1 unit = {scale.mm_per_unit:.4g} mm, from {scale.source}")
    return lines


def _lens_words(photo: PosedPhoto) -> str:
    camera, distortion = photo.camera, photo.distortion
    return f"focal length {camera.fl_x:.0f} px at {camera.width} x {camera.height}, k1 {distortion.k1:.3f}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
