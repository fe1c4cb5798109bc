"""The cameras of plain photos: structure from motion by COLMAP (pycolmap, SIFT), on the CPU, seeded.

`reconstruct` keeps the features and matches in `database.db` and the cameras in `sparse/` of a folder, and goes on from
there. COLMAP sees each photo upright, at most `longest_px` long and under a number for a name (its lists of pairs do not
bear spaces); what comes back is in px of the whole upright photo, pixel centres at +0.5.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from prepare.atomic_write import write_json
from prepare.camera import Camera, fit_within
from prepare.errors import InputError, MissingPartError
from prepare.image import image_size, read_image, read_mask_share, resize
from prepare.photo_pairs import alike_pairs, all_pairs, sequence_pairs, signatures
from prepare.scene import read_json_object
from prepare.undistort import Distortion

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_STATE_VERSION = 2
_RETRIEVAL_FEATURES = 1000  # of each photo, for finding look-alikes
_CHUNKS = 40  # of the list of pairs: progress is told, and an interrupted run goes on, from one to the next
_MARGIN = 0.004  # of the longer side, inside a mask's outline, where no features are taken
_LEAST_INLIERS = 15  # of a pair that counts as verified: COLMAP's own
_OPENCV_FROM = 10  # photos of one lens from which on its tangential distortion can be told too


@dataclass(frozen=True)
class SfmConfig:
    """How photos are matched and put together."""

    longest_px: int = 1600
    """Features are sought in photos of at most this longer side, px."""
    most_features: int = 8192
    """Of a photo, the largest first."""
    exhaustive_up_to: int = 50
    """Photos up to which all are matched with all."""
    neighbours: int = 10
    """Photos after each one that it is matched with, where there are more or they are a video's frames."""
    alike: int = 25
    """Photos most like each one that it is then matched with, too."""
    enough: float = 0.7
    """Share of the photos that must be registered; with fewer, the next mapper is tried."""
    focal_fixed: bool = False
    """Whether focal lengths stay as they are given: cameras on one circle leave focal length and tilt open together."""
    seed: int = 0
    """Of every random choice."""


@dataclass(frozen=True)
class SfmPhoto:
    """A photo whose camera is sought."""

    name: str  # unique
    path: Path
    lens: str  # photos of the same lens and size share one camera
    focal_px: float | None  # from EXIF, at the photo's full size; None: to be found without
    mask_path: Path | None = None  # white where features are sought, as large as the photo; None: everywhere


@dataclass(frozen=True)
class PosedPhoto:
    """A registered photo."""

    name: str
    path: Path
    camera: Camera  # of the whole upright photo; world_to_cam is float64, in COLMAP's world
    distortion: Distortion
    observed_px: Float[Tensor, "seen uv=2"]  # where the photo shows points of the cloud, distorted as it is
    observed: Int[Tensor, " seen"]  # which points these are


@dataclass(frozen=True)
class Reconstruction:
    """Cameras and points, in a world of COLMAP's own origin, turn and unit."""

    photos: tuple[PosedPhoto, ...]  # the registered ones, in the order asked
    points: Float[Tensor, "points xyz=3"]  # float64
    colours: Float[Tensor, "points rgb=3"]  # in [0, 1], the mean of what the photos show there
    error_px: float  # mean reprojection error, px of the photos as COLMAP saw them
    mapper: str  # "incremental", "global" or "incremental, lenient"
    pairs: int  # pairs of photos that share verified matches
    apart: tuple[int, ...]  # photos in each of the other groups that do not connect to this one


def reconstruct(
    photos: Sequence[SfmPhoto],
    folder: Path,
    *,
    ordered: bool = False,
    config: SfmConfig | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Reconstruction:
    """The largest reconstruction that holds together; `ordered` for frames of a video.

    Incremental mapping first, global (GLOMAP) where it registers less than `config.enough`, then incremental with lower
    thresholds; the one with most photos counts, the earlier of equals. What `folder` holds from the same photos (by
    name, size, time of change, lens and config) is used again.
    Raises: MissingPartError without pycolmap; InputError for fewer than two photos, for photos that cannot be read and
    where no two fit together.
    """
    config = config or SfmConfig()
    if len(photos) < 2:
        raise InputError(
            f"cameras from photos: need at least 2 photos, got {len(photos)}; take 20 to 60 all round the part"
        )
    colmap = load_colmap()
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(colmap, tuple(photos), folder, config, progress)
    with _quiet(colmap):
        try:
            work.resume_or_begin()
            if not work.state.get("mapped"):
                work.extract()
                work.match(ordered)
                work.map()
            model = colmap.Reconstruction(str(work.sparse))
        except (
            RuntimeError,
            ValueError,
        ) as error:  # what COLMAP throws for a broken database, a full disk, ...
            raise InputError(
                f"{folder}: COLMAP failed ({' '.join(str(error).split())[:160]}); delete that folder and run again"
            ) from error
        return work.result(model)


def load_colmap() -> Any:
    """The module pycolmap. Raises: MissingPartError where it is not installed or too old."""
    try:
        colmap = importlib.import_module("pycolmap")
    except ImportError:
        colmap = None
    if colmap is None or not hasattr(colmap, "FeatureExtractor"):
        raise MissingPartError("cameras from photos: need pycolmap 4 or newer; pip install 'splatad[photos]'")
    return colmap


@contextmanager
def _quiet(colmap: Any) -> Iterator[None]:
    """COLMAP writes its steps to stderr otherwise; what fails is thrown."""
    level = colmap.logging.minloglevel
    colmap.logging.minloglevel = 3
    try:
        yield
    finally:
        colmap.logging.minloglevel = level


@dataclass
class _Work:
    colmap: Any
    photos: tuple[SfmPhoto, ...]
    folder: Path
    config: SfmConfig
    progress: Progress
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.folder / "database.db"

    @property
    def sparse(self) -> Path:
        return self.folder / "sparse"

    def resume_or_begin(self) -> None:
        """Keeps what was made from the very same photos, else begins with a database that lists these."""
        wanted = {
            "version": _STATE_VERSION,
            "pycolmap": self.colmap.__version__,
            "config": asdict(self.config),
            "photos": [
                [photo.name, *_fingerprint(photo.path), photo.lens, photo.focal_px, _digest(photo.mask_path)]
                for photo in self.photos
            ],
        }
        state_path = self.folder / "sfm.json"
        if state_path.is_file() and self.database.is_file():
            try:
                before = read_json_object(state_path)
            except InputError:
                before = {}
            if {key: before.get(key) for key in wanted} == wanted and (
                not before.get("mapped") or self.sparse.is_dir()
            ):
                self.state = before
                return
        for leftover in self.folder.glob("database.db*"):
            leftover.unlink()
        shutil.rmtree(self.sparse, ignore_errors=True)
        state_path.unlink(missing_ok=True)
        self._list_photos()
        self.state = wanted
        write_json(state_path, self.state)

    def _list_photos(self) -> None:
        """Cameras, photos and COLMAP's trivial rigs and frames; photo i of ours has the id i + 1."""
        colmap = self.colmap
        sizes = [self.working_size(photo) for photo in self.photos]
        keys = [(photo.lens, *size) for photo, size in zip(self.photos, sizes, strict=True)]
        database = colmap.Database.open(str(self.database))
        cameras: dict[tuple[str, int, int], int] = {}
        for index, (photo, (width, height), key) in enumerate(zip(self.photos, sizes, keys, strict=True)):
            if key not in cameras:
                camera_id = len(cameras) + 1
                ratio = max(width, height) / max(image_size(photo.path))
                focal = 1.2 * max(width, height) if photo.focal_px is None else photo.focal_px * ratio
                model = "OPENCV" if keys.count(key) >= _OPENCV_FROM else "SIMPLE_RADIAL"
                camera = colmap.Camera.create_from_model_name(camera_id, model, focal, width, height)
                camera.has_prior_focal_length = photo.focal_px is not None
                database.write_camera(camera, use_camera_id=True)
                rig = colmap.Rig(rig_id=camera_id)
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig, use_rig_id=True)
                cameras[key] = camera_id
            image = colmap.Image(name=_number(index), camera_id=cameras[key], image_id=index + 1)
            database.write_image(image, use_image_id=True)
            frame = colmap.Frame(frame_id=index + 1, rig_id=cameras[key])
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
        database.close()

    def working_size(self, photo: SfmPhoto) -> tuple[int, int]:
        return fit_within(*image_size(photo.path), self.config.longest_px)

    def extract(self) -> None:
        """SIFT of every photo that the database has none of yet."""
        database = self.colmap.Database.open(str(self.database))
        pending = [index for index in range(len(self.photos)) if not database.exists_keypoints(index + 1)]
        done = len(self.photos) - len(pending)
        self.progress("features", done, len(self.photos))
        local = threading.local()

        def features(index: int) -> tuple[np.ndarray, Any]:
            if not hasattr(local, "extractor"):
                local.extractor = self._extractor()
            return self._features(local.extractor, self.photos[index])

        try:
            with ThreadPoolExecutor(max_workers=_threads()) as pool:
                for index, (keypoints, descriptors) in zip(pending, pool.map(features, pending), strict=True):
                    database.write_descriptors(index + 1, descriptors)
                    database.write_keypoints(index + 1, keypoints)
                    done += 1
                    self.progress("features", done, len(self.photos))
        finally:
            database.close()

    def _extractor(self) -> Any:
        options = self.colmap.FeatureExtractionOptions()
        options.type = (
            self.colmap.FeatureExtractorType.SIFT
        )  # the others abort the process where they lack weights
        options.use_gpu = False
        options.num_threads = 1  # the photos are spread over the cores
        options.max_image_size = self.config.longest_px
        options.sift.max_num_features = self.config.most_features
        return self.colmap.FeatureExtractor.create(options, self.colmap.Device.cpu)

    def _features(self, extractor: Any, photo: SfmPhoto) -> tuple[np.ndarray, Any]:
        """Keypoints (n, 4: x, y, scale, turn) and descriptors; of a photo with alpha or a mask, those on the part alone."""
        decoded = read_image(photo.path)
        size = self.working_size(photo)
        grey = (decoded.rgb @ torch.tensor([0.299, 0.587, 0.114]))[..., None]
        alpha = None
        if decoded.alpha is not None and not bool((decoded.alpha == 1).all()):
            grey = grey * decoded.alpha[..., None] + (1 - decoded.alpha[..., None])
            alpha = resize(decoded.alpha[..., None], *size)[..., 0]
        if photo.mask_path is not None:
            # A margin keeps off features that are half of what is round the part.
            mask = resize(read_mask_share(photo.mask_path)[..., None], *size)[..., 0].numpy() > 0.5
            margin = max(1, round(_MARGIN * max(size)))
            inner = torch.from_numpy(ndimage.binary_erosion(mask, iterations=margin)).float()
            alpha = inner if alpha is None else alpha * inner
        small = resize(grey, *size)[..., 0]
        pixels = np.ascontiguousarray((small * 255).round().clamp(0, 255).byte().numpy())
        found, descriptors = extractor.extract_from_uint8_array(pixels)
        keypoints = np.asarray(self.colmap.keypoints_to_matrix(found), dtype=np.float32).reshape(-1, 4)
        if alpha is not None:
            column = keypoints[:, 0].astype(np.int64).clip(0, size[0] - 1)
            row = keypoints[:, 1].astype(np.int64).clip(0, size[1] - 1)
            on_part = alpha.numpy()[row, column] > 0.5
            keypoints = keypoints[on_part]
            descriptors = self.colmap.FeatureDescriptors(
                descriptors.type, np.ascontiguousarray(descriptors.data[on_part])
            )
        return keypoints, descriptors

    def match(self, ordered: bool) -> None:
        """Matches and verifies the pairs chosen by count; COLMAP skips those that the database has already."""
        pairs = self._pairs(ordered)
        matching = self.colmap.FeatureMatchingOptions()
        matching.use_gpu = False
        matching.num_threads = _threads()
        verification = self.colmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = self.config.seed
        step = max(50, -(-len(pairs) // _CHUNKS))
        with tempfile.TemporaryDirectory(prefix="pairs-", dir=self.folder) as temporary:
            listed = Path(temporary) / "pairs.txt"
            for start in range(0, len(pairs), step):
                self.progress("matching", start, len(pairs))
                chunk = pairs[start : start + step]
                listed.write_text("".join(f"{_number(i)} {_number(j)}\n" for i, j in chunk))
                pairing = self.colmap.ImportedPairingOptions()
                pairing.match_list_path = str(listed)
                self.colmap.match_image_pairs(
                    str(self.database), matching, pairing, verification, self.colmap.Device.cpu
                )
        self.progress("matching", len(pairs), len(pairs))

    def _pairs(self, ordered: bool) -> list[tuple[int, int]]:
        count, config = len(self.photos), self.config
        if count <= config.exhaustive_up_to and not (ordered and count > 4 * config.neighbours):
            return all_pairs(count)
        database = self.colmap.Database.open(str(self.database))
        features = []
        for index in range(count):
            scale = np.asarray(database.read_keypoints(index + 1)).reshape(-1, 4)
            largest = np.argsort(-scale[:, 2], kind="stable")[:_RETRIEVAL_FEATURES]
            data = np.asarray(database.read_descriptors(index + 1).data).reshape(-1, 128)[largest]
            features.append(torch.nn.functional.normalize(torch.from_numpy(data.astype(np.float32)), dim=1))
        database.close()
        alike = alike_pairs(signatures(features, config.seed), config.alike)
        return sorted(alike | sequence_pairs(count, config.neighbours))

    def map(self) -> None:
        """Runs one mapper after another until one registers enough, and writes the best model to `sparse`."""
        best: Any = None
        outcome: dict[str, Any] = {}
        for name, mapper in (
            ("incremental", lambda out: self._incremental(out, lenient=False)),
            ("global", self._global),
            ("incremental, lenient", lambda out: self._incremental(out, lenient=True)),
        ):
            with tempfile.TemporaryDirectory(prefix="mapping-", dir=self.folder) as temporary:
                models = sorted(
                    mapper(Path(temporary)).values(),
                    key=lambda model: (-model.num_reg_images(), -model.num_points3D()),
                )
            if models and (best is None or models[0].num_reg_images() > best.num_reg_images()):
                best = models[0]
                outcome = {"mapper": name, "apart": [model.num_reg_images() for model in models[1:]]}
            if best is not None and best.num_reg_images() >= self.config.enough * len(self.photos):
                break
        if best is None or best.num_reg_images() < 2:
            raise InputError(self._why_nothing_registered())
        shutil.rmtree(self.sparse, ignore_errors=True)
        self.sparse.mkdir()
        best.write(str(self.sparse))
        self.state = {**self.state, **outcome, "pairs": self._verified_pairs(), "mapped": True}
        write_json(self.folder / "sfm.json", self.state)

    def _incremental(self, out: Path, *, lenient: bool) -> dict[int, Any]:
        options = self.colmap.IncrementalPipelineOptions()
        options.min_model_size = 2
        options.extract_colors = False  # ours: COLMAP would read the photos as they lie
        options.ba_refine_focal_length = not self.config.focal_fixed
        options.num_threads = options.mapper.num_threads = (
            1  # with two, sums and so cameras vary; it gains nothing
        )
        for part in (options, options.mapper, options.triangulation):
            part.random_seed = self.config.seed
        if lenient:
            options.mapper.init_min_num_inliers = 30
            options.mapper.init_min_tri_angle = 4.0
            options.mapper.abs_pose_min_num_inliers = 15
            options.mapper.abs_pose_min_inlier_ratio = 0.15
        registered = 0

        def one_more(*_: object) -> None:
            nonlocal registered
            registered = min(registered + 1, len(self.photos))
            self.progress("cameras", registered, len(self.photos))

        self.progress("cameras", 0, len(self.photos))
        models: dict[int, Any] = self.colmap.incremental_mapping(
            str(self.database), str(self.folder), str(out), options, next_image_callback=one_more
        )
        return models

    def _global(self, out: Path) -> dict[int, Any]:
        """GLOMAP on a copy of the database, in which unknown focal lengths are first found from pairs."""
        copy = out / "database.db"
        shutil.copy2(self.database, copy)
        self.progress("cameras, all at once", 0, len(self.photos))
        if not self.config.focal_fixed:
            self.colmap.calibrate_view_graph(str(copy))
        options = self.colmap.GlobalPipelineOptions()
        options.num_threads = options.mapper.num_threads = 1
        options.mapper.bundle_adjustment.ceres.solver_options.num_threads = 1
        for part in (
            options,
            options.mapper,
            options.mapper.rotation_averaging,
            options.mapper.global_positioning,
            options.mapper.retriangulation,
        ):
            part.random_seed = self.config.seed
        options.mapper.global_positioning.use_gpu = False
        options.mapper.bundle_adjustment.ceres.use_gpu = False
        options.mapper.bundle_adjustment.refine_focal_length = not self.config.focal_fixed
        try:
            models: dict[int, Any] = self.colmap.global_mapping(
                str(copy), str(self.folder), str(out), options
            )
        except (RuntimeError, ValueError):  # it throws where incremental mapping would return nothing
            models = {}
        self.progress("cameras, all at once", len(self.photos), len(self.photos))
        return models

    def _verified_pairs(self) -> int:
        database = self.colmap.Database.open(str(self.database))
        try:
            _, inliers = database.read_two_view_geometry_num_inliers()
            return sum(count >= _LEAST_INLIERS for count in inliers)
        finally:
            database.close()

    def _why_nothing_registered(self) -> str:
        database = self.colmap.Database.open(str(self.database))
        features = sorted(database.num_keypoints_for_image(index + 1) for index in range(len(self.photos)))
        database.close()
        pairs, count = self._verified_pairs(), len(self.photos)
        where = f"cameras from photos: none of the {count} photos could be placed"
        middle = features[len(features) // 2]
        if middle < 100:
            return (
                f"{where}, they show too little detail (median {middle} features); put the part on a printed page or a"
                " patterned cloth, use more light, go nearer"
            )
        if pairs == 0:
            return f"{where}, no two of them overlap; take photos all round in steps of about 10 degrees"
        return (
            f"{where}, {pairs} pairs overlap but show no parallax; move the camera round the part in steps of about 10"
            " degrees, do not turn on the spot"
        )

    def result(self, model: Any) -> Reconstruction:
        """COLMAP's model in our terms."""
        ids = sorted(model.points3D)
        row = {point_id: index for index, point_id in enumerate(ids)}
        points = np.array([model.points3D[point_id].xyz for point_id in ids], dtype=np.float64).reshape(-1, 3)
        registered = sorted(model.reg_image_ids())
        photos, colours = [], torch.zeros(len(ids), 3, dtype=torch.float64)
        seen = torch.zeros(len(ids), dtype=torch.float64)
        for done, image_id in enumerate(registered):
            self.progress("colours", done, len(registered))
            photo = self._posed(model.images[image_id], row)
            rgb = read_image(photo.path).rgb
            column = photo.observed_px[:, 0].long().clamp(0, rgb.shape[1] - 1)
            line = photo.observed_px[:, 1].long().clamp(0, rgb.shape[0] - 1)
            colours.index_add_(0, photo.observed, rgb[line, column].double())
            seen.index_add_(0, photo.observed, torch.ones(len(photo.observed), dtype=torch.float64))
            photos.append(photo)
        self.progress("colours", len(registered), len(registered))
        return Reconstruction(
            tuple(photos),
            torch.from_numpy(points),
            (colours / seen.clamp_min(1)[:, None]).float(),
            float(model.compute_mean_reprojection_error()),
            str(self.state["mapper"]),
            int(self.state["pairs"]),
            tuple(int(count) for count in self.state["apart"]),
        )

    def _posed(self, image: Any, row: dict[int, int]) -> PosedPhoto:
        photo = self.photos[image.image_id - 1]
        lens = image.camera
        width, height = image_size(photo.path)
        world_to_cam = torch.eye(4, dtype=torch.float64)
        world_to_cam[:3] = torch.from_numpy(np.array(image.cam_from_world().matrix(), dtype=np.float64))
        params = [float(value) for value in lens.params]
        if lens.model_name == "OPENCV":
            fl_x, fl_y, cx, cy, k1, k2, p1, p2 = params
        else:  # SIMPLE_RADIAL: see `_list_photos`
            (fl_x, cx, cy, k1), k2, p1, p2 = params, 0.0, 0.0, 0.0
            fl_y = fl_x
        seen = [point for point in image.points2D if point.has_point3D()]
        at = np.array([point.xy for point in seen], dtype=np.float64).reshape(-1, 2)
        at *= [width / lens.width, height / lens.height]
        return PosedPhoto(
            photo.name,
            photo.path,
            Camera(world_to_cam, fl_x, fl_y, cx, cy, lens.width, lens.height).resized(width, height),
            Distortion(k1=k1, k2=k2, p1=p1, p2=p2),
            torch.from_numpy(at),
            torch.tensor([row[point.point3D_id] for point in seen], dtype=torch.int64),
        )


def _number(index: int) -> str:
    return f"{index:06d}"


def _fingerprint(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(mask: Path | None) -> str | None:
    """Of the file's bytes: a mask is written anew by every run."""
    return None if mask is None else hashlib.sha256(mask.read_bytes()).hexdigest()


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))
