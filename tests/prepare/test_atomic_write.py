from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from prepare.atomic_write import write_bytes, write_json, write_text, write_with
from prepare.errors import InputError


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.bin"
    write_bytes(target, b"first")
    write_bytes(target, b"second")
    assert target.read_bytes() == b"second"
    assert _names(target.parent) == ["a.bin"]
    write_text(target, "Größe")
    assert target.read_text(encoding="utf-8") == "Größe"


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="no space left"):
        write_with(target, full)
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_no_trace(tmp_path: Path, fault: type[BaseException]) -> None:
    def stop(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise fault

    with pytest.raises(fault):
        write_with(tmp_path / "a.bin", stop)
    assert _names(tmp_path) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "a.bin", b"")


def test_json_comes_back_and_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Größe", "value": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "name": "Größe",
        "value": [1, 2.5, None],
    }
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"value": float("nan")})
    assert _names(tmp_path) == ["a.json"]


def test_a_full_disk_that_safetensors_meets_is_said_as_such(tmp_path):
    from safetensors import SafetensorError

    def write(temporary):
        temporary.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(InputError, match="no space left on the disk"):
        write_with(tmp_path / "x.safetensors", write)
    assert list(tmp_path.iterdir()) == []
