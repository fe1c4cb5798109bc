"""`import splatad` checks the four generic package names beside it, cheaply, and says which file is in the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def _import_splatad(first_on_path: Path, code: str = "import splatad") -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh Python that looks into `first_on_path` before the repository."""
    paths = f"import sys; sys.path[:0] = [{str(first_on_path)!r}, {str(REPO)!r}]; "
    return subprocess.run(
        [sys.executable, "-c", paths + code], cwd=first_on_path, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["prepare", "recon", "pose", "detect"])
def test_a_users_own_module_of_the_same_name_is_named_in_the_error(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / f"{name}.py"
    theirs.write_text("raise SystemExit('the guard must not import this')")
    done = _import_splatad(tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: splatad: ")
    assert f"{theirs} is in the way" in last
    assert "rename or move" in last


def test_a_users_own_package_of_the_same_name_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "detect").mkdir()
    (tmp_path / "detect/__init__.py").touch()
    done = _import_splatad(tmp_path)
    assert f"{tmp_path / 'detect/__init__.py'} is in the way" in done.stderr


def test_a_module_that_was_imported_before_is_found_in_the_way_too(tmp_path: Path) -> None:
    (tmp_path / "pose.py").touch()
    code = f"import pose; sys.path.remove({str(tmp_path)!r}); import splatad"
    assert f"{tmp_path / 'pose.py'} is in the way" in _import_splatad(tmp_path, code).stderr


def test_a_missing_package_is_named_with_the_place_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "splatad").symlink_to(tmp_path / "elsewhere/splatad")
    (tmp_path / "elsewhere/splatad").mkdir(parents=True)
    source = (REPO / "splatad/__init__.py").read_text()
    (tmp_path / "elsewhere/splatad/__init__.py").write_text(source)
    code = f"sys.path[:] = [p for p in sys.path if p != {str(REPO)!r} and 'site-packages' not in p]; import splatad"
    done = _import_splatad(tmp_path, code)
    assert "its package 'prepare' is missing" in done.stderr
    assert str(tmp_path / "elsewhere/prepare/__init__.py") in done.stderr


def test_a_folder_without_code_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "detect").mkdir()  # a folder of results, say; Python prefers a real package further on
    assert _import_splatad(tmp_path).returncode == 0


def test_importing_splatad_loads_neither_torch_nor_its_packages(tmp_path: Path) -> None:
    code = "import splatad; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = _import_splatad(tmp_path, code)
    loaded = set(done.stdout.strip("[]\n").replace("'", "").split(", "))
    assert "splatad" in loaded
    assert not loaded & {"torch", "numpy", "prepare", "recon", "pose", "detect", "tyro", "rich"}


def test_public_names_are_those_of_their_modules() -> None:
    import prepare.scene
    import splatad

    assert splatad.Scene is prepare.scene.Scene
    assert splatad.load_scene is prepare.scene.load_scene
    assert set(splatad.__all__) <= set(dir(splatad))


def test_an_unknown_name_is_an_attribute_error() -> None:
    import splatad

    with pytest.raises(AttributeError, match="nonsense"):
        _ = splatad.nonsense


def test_every_public_name_is_there_and_listed() -> None:
    import splatad

    assert {*splatad._PUBLIC, "__version__"} == set(splatad.__all__)
    for name in splatad._PUBLIC:
        assert getattr(splatad, name).__name__ == name
