"""MAD-Sim: classes of rendered parts, with poses for the train photos only.

    <data>/<class>/train/good/N.png   test/<good|type>/N.png   ground_truth/<type>/N_mask.png   transforms.json
    and, in datasets made by `splatad generate`, test_poses.json with the true cameras of the test photos.

Photos are matched by their file names, never by their order. Source: github.com/EricLee0224/PAD.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from prepare.camera import focal_from_fov
from prepare.datasets.scene_folder import (
    Progress,
    SceneWriter,
    intrinsics,
    no_progress,
    share_intrinsics,
    write_foreground_masks,
)
from prepare.errors import InputError, UsageError
from prepare.image import IMAGE_SUFFIXES, image_size, natural_key
from prepare.scene import GOOD, find_photo, read_json_object, read_pose, relative_path

_INTRINSICS = ("camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h")


def prepare_mad_sim(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    classes: Sequence[str] | None = None,
    copy: bool = False,
    subset: float | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress = no_progress,
) -> list[Path]:
    """The scene folders written, one for each class of a MAD-Sim dataset (or for the one class folder that `data` is).

    `scene_folder` names the folder for a scene, which is called as its class, or `name` for a single class. The
    dataset is only read: photos are linked, or copied with `copy` and where links are not possible. `subset` keeps
    that share (0, 1] of the train photos, drawn with `seed` (see `draw_subset`), and all test photos; its scene is
    called after both (`scene_name`).
    Raises: InputError for data that is not MAD-Sim's; UsageError for a class that is not in it, a share outside
    (0, 1], or one name for several classes.
    """
    if subset is not None and not 0 < subset <= 1:
        raise UsageError(
            f"--subset: must be above 0 and at most 1, got {subset}; 0.5 keeps half of the train photos"
        )
    folders = find_classes(data)
    chosen = chosen_classes(data, folders, classes)
    if name is not None and len(chosen) > 1:
        raise UsageError(f"--name {name}: is for one class, got {len(chosen)}; choose it with --class")
    return [
        _prepare_class(
            folders[one],
            scene_folder(name or scene_name(one, subset, seed)),
            copy=copy,
            subset=subset,
            seed=seed,
            progress=progress,
            name=one,
        )
        for one in chosen
    ]


def scene_name(class_name: str, subset: float | None, seed: int = 0) -> str:
    """What the scene of a class is called: its share of the train photos in percent goes with it, as in mad_car-20.

    A seed other than 0 is told too (mad_car-20-seed1): another draw must not replace the photos that a reference was
    fitted from.
    """
    if subset is None or subset == 1:
        return class_name
    return f"{class_name}-{100 * subset:g}" + (f"-seed{seed}" if seed else "")


def draw_subset(photos: Sequence[PurePosixPath], share: float, seed: int) -> list[PurePosixPath]:
    """That share (0, 1] of the photos, rounded, one at least, in their order.

    Each photo's rank is drawn from the seed and its own name: the order of the photos does not matter, and of the same
    seed a smaller share lies inside a larger one.
    """

    def rank(photo: PurePosixPath) -> bytes:
        return hashlib.sha256(f"{seed}:{photo.as_posix()}".encode()).digest()

    kept = set(sorted(photos, key=rank)[: max(1, round(share * len(photos)))])
    return [photo for photo in photos if photo in kept]


def find_classes(data: Path) -> dict[str, Path]:
    """The class folders of a MAD-Sim dataset by name, sorted; `data` may itself be one class.

    Raises: InputError where there is none.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; give the folder that holds MAD-Sim's classes with --data")
    data = data.resolve()
    if _is_class(data):
        return {data.name: data}
    found = {folder.name: folder for folder in sorted(data.iterdir()) if _is_class(folder)}
    if not found:
        raise InputError(
            f"{data}: no MAD-Sim class in it; expected CLASS/transforms.json and CLASS/train/good/0.png,"
            " give the folder above the classes"
        )
    return found


def _is_class(folder: Path) -> bool:
    return (folder / "transforms.json").is_file() and (folder / "train").is_dir()


def chosen_classes(data: Path, folders: Mapping[str, Path], classes: Sequence[str] | None) -> list[str]:
    """`classes` once each, or all of `folders`. Raises: UsageError for one that `data` has not, with what is near."""
    for wanted in classes or ():
        if wanted not in folders:
            raise UsageError(f"{data}: has no class {wanted!r}; {_nearest(wanted, list(folders))}")
    return list(dict.fromkeys(classes or folders))


def _nearest(name: str, known: list[str]) -> str:
    """What to try instead of `name`, compared without case and without MAD-Sim's leading numbers."""
    plain = {known_name.lstrip("0123456789").lower(): known_name for known_name in known}
    near = [
        plain[match]
        for match in difflib.get_close_matches(name.lstrip("0123456789").lower(), plain, n=3, cutoff=0.5)
    ]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"


def _prepare_class(
    folder: Path, scene: Path, *, copy: bool, subset: float | None, seed: int, progress: Progress, name: str
) -> Path:
    json_path = folder / "transforms.json"
    document = read_json_object(json_path)
    fov = _field_of_view(json_path, document)
    train = _train_photos(json_path, document)
    tests = _test_photos(folder)
    poses = _true_poses(folder / "test_poses.json")

    writer = SceneWriter(scene, folder, "mad-sim", copy, {"subset": subset, "seed": seed})
    present = []
    for listed, matrix in train:
        photo = find_photo(folder, listed)
        if photo is None:
            writer.missing.append(listed.as_posix())
        else:
            present.append((photo, matrix))
    if subset is not None and present:
        kept = set(draw_subset([photo for photo, _ in present], subset, seed))
        present = [(photo, matrix) for photo, matrix in present if photo in kept]

    total = len(present) * 2 + len(tests)
    count, lock = 0, threading.Lock()

    def one_more() -> None:
        nonlocal count
        with lock:
            count += 1
            progress(name, count, total)

    for photo, matrix in present:
        width, height = image_size(folder / photo)
        focal = focal_from_fov(width, fov)
        writer.frames.append(
            {
                "file_path": writer.place(folder / photo, PurePosixPath("images") / photo),
                "transform_matrix": matrix,
                **intrinsics(width, height, focal, focal),
            }
        )
        one_more()
    masks = {(PurePosixPath("masks") / photo).with_suffix(".png"): folder / photo for photo, _ in present}
    made = write_foreground_masks(masks, scene, one_more)
    for frame, (mask, there) in zip(writer.frames, made.items(), strict=True):
        if there:
            frame["mask_path"] = mask.as_posix()

    for photo, label, defect in tests:
        query: dict[str, Any] = {
            "file_path": writer.place(folder / photo, PurePosixPath("images") / photo),
            "label": label,
            "mask_path": None,
        }
        if defect is not None and (folder / defect).is_file():
            query["mask_path"] = writer.place(folder / defect, defect)
        elif defect is not None:
            writer.missing.append(defect.as_posix())
        if photo.as_posix() in poses:
            query["transform_matrix"] = poses[photo.as_posix()]
        writer.queries.append(query)
        one_more()
    return writer.finish(share_intrinsics(writer.frames, _INTRINSICS))


def _field_of_view(json_path: Path, document: dict[str, Any]) -> float:
    angle = document.get("camera_angle_x")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < math.pi:
        raise InputError(
            f"{json_path}: camera_angle_x must be between 0 and pi, got {angle!r}; copy the dataset again"
        )
    return float(angle)


def _train_photos(json_path: Path, document: dict[str, Any]) -> list[tuple[PurePosixPath, Any]]:
    """Listed path and checked matrix (as listed) of each frame."""
    frames = document.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{json_path}: lists no frames; copy the dataset again")
    train = {}
    for index, frame in enumerate(frames):
        path = relative_path(json_path, f"frames[{index}].file_path", frame.get("file_path"))
        read_pose(json_path, f"frames[{index}].transform_matrix", frame.get("transform_matrix"))
        if path in train:
            raise InputError(
                f"{json_path}: frames[{index}] lists {path} a second time; keep one frame for each photo"
            )
        train[path] = frame["transform_matrix"]
    return list(train.items())


def _test_photos(folder: Path) -> list[tuple[PurePosixPath, str, PurePosixPath | None]]:
    """Path, label and true mask (None for good parts) of each test photo, in natural order."""
    tests: list[tuple[PurePosixPath, str, PurePosixPath | None]] = []
    test = folder / "test"
    labels = sorted(entry.name for entry in test.iterdir() if entry.is_dir()) if test.is_dir() else []
    for label in labels:
        names = [
            e.name
            for e in (test / label).iterdir()
            if e.suffix.lower() in IMAGE_SUFFIXES and e.name[0] != "."
        ]
        for photo in sorted(names, key=natural_key):
            mask = (
                None
                if label == GOOD
                else PurePosixPath("ground_truth", label, f"{Path(photo).stem}_mask.png")
            )
            tests.append((PurePosixPath("test", label, photo), label, mask))
    return tests


def _true_poses(json_path: Path) -> dict[str, Any]:
    """Camera-to-world OpenGL matrices by test photo, as listed; none where the dataset has no such file."""
    if not json_path.is_file():
        return {}
    poses = read_json_object(json_path).get("poses")
    if not isinstance(poses, dict):
        raise InputError(f"{json_path}: must hold an object of poses; copy the dataset again")
    for photo, matrix in poses.items():
        read_pose(json_path, f"poses[{photo[:60]!r}]", matrix)
    return poses
