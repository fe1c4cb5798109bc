from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from prepare.errors import InputError, MissingPartError, UsageError
from prepare.image import read_image
from prepare.video import sharpest_frames

_SHARP = (2, 5, 11, 13)  # one in each stretch of four


def _frame(index: int) -> np.ndarray:
    """A square that moves right by 6 px a frame, on blobs; all but the _SHARP ones are blurred."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 200, (24, 32, 3), dtype=np.uint8)).resize(
        (128, 96), Image.Resampling.NEAREST
    )
    image.paste((255, 255, 255), (6 * index, 40, 6 * index + 16, 56))
    return np.asarray(image if index in _SHARP else image.filter(ImageFilter.GaussianBlur(3)))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 frames, 10 a second."""
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as imageio

    path = tmp_path_factory.mktemp("video") / "round.mp4"
    frames = np.stack([_frame(index) for index in range(16)])
    imageio.imwrite(path, frames, plugin="FFMPEG", fps=10, codec="libx264", quality=9)
    return path


def test_the_sharpest_frame_of_each_stretch_is_taken(video: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    files = sharpest_frames(video, tmp_path, 4, lambda done, total: told.append((done, total)))
    assert [file.name for file in files] == [f"frame_{index:06d}.jpg" for index in _SHARP]
    assert told[-1] == (16, 16)
    for file, index in zip(files, _SHARP, strict=True):
        true = _frame(index).astype(np.float32) / 255
        assert (
            np.abs(read_image(file).rgb.numpy() - true).mean() < 0.05
        )  # compressed twice, and the right one


def test_frames_are_not_read_again_until_the_video_changes(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sharpest_frames(video, tmp_path, 4)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert sharpest_frames(video, tmp_path, 4) == first
    with pytest.raises(
        MissingPartError, match=r"needs imageio's ffmpeg plugin; pip install 'splatad\[photos\]'"
    ):
        sharpest_frames(video, tmp_path, 5)


def test_a_video_shorter_than_asked_gives_each_frame_once(video: Path, tmp_path: Path) -> None:
    files = sharpest_frames(video, tmp_path, 100)
    assert [file.name for file in files] == [f"frame_{index:06d}.jpg" for index in range(16)]


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        sharpest_frames(path, tmp_path, 4)
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(InputError, match="is not a video that ffmpeg can read") as caught:
        sharpest_frames(path, tmp_path, 4)
    assert "\n" not in str(caught.value)
    assert "stderr" not in str(caught.value)  # what is wrong, not ffmpeg's version
    assert "Copyright" not in str(caught.value)
    with pytest.raises(UsageError, match="--frames: must be 2 or more"):
        sharpest_frames(path, tmp_path, 1)
