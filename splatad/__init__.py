"""Finds what is wrong with a part from one photo. The public interface: what is named here, and nothing below it.

Importing this checks that the four packages that stand beside it (their names are common words) are ours; it loads
neither them nor torch until a name is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Public name -> "module:attribute", loaded at first use.
_PUBLIC = {
    "FitConfig": "recon.fit:FitConfig",
    "Gaussians": "recon.gaussians:Gaussians",
    "Inspection": "splatad.inspector:Inspection",
    "Inspector": "splatad.inspector:Inspector",
    "Reference": "recon.reference:Reference",
    "Scene": "prepare.scene:Scene",
    "fit_scene": "recon.fit:fit_scene",
    "load_reference": "recon.reference:load_reference",
    "load_scene": "prepare.scene:load_scene",
    "read_splats": "recon.ply:read_splats",
    "write_splats": "recon.ply:write_splats",
}
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "FitConfig",
    "Gaussians",
    "Inspection",
    "Inspector",
    "Reference",
    "Scene",
    "__version__",
    "fit_scene",
    "load_reference",
    "load_scene",
    "read_splats",
    "write_splats",
]


def _location(package: str) -> Path | None:
    """The file that `import <package>` runs, found without importing it; None where there is none."""
    loaded = sys.modules.get(package)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file) if file else None
    spec = importlib.util.find_spec(
        package
    )  # a folder without __init__.py has no origin: not a package of ours
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _require_own_packages() -> None:
    """Raises: ImportError where prepare, recon, pose or detect is not the one installed beside this package."""
    beside = Path(__file__).resolve().parent.parent
    for package in ("prepare", "recon", "pose", "detect"):
        found = _location(package)
        own = beside / package / "__init__.py"
        if found is None:
            raise ImportError(
                f"splatad: its package {package!r} is missing, expected {own}; install splatad again"
            )
        if found.resolve() != own.resolve():
            raise ImportError(
                f"splatad: {found} is in the way of splatad's own {package!r} ({own}); "
                "rename or move that file, or run from another folder"
            )


_require_own_packages()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'splatad' has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
