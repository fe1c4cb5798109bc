"""Where things lie: one workspace folder with prepared scenes, fitted references and the runs made with them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "SPLATAD_WORKSPACE"
DEFAULT_NAME = "splatad-work"


@dataclass(frozen=True)
class Workspace:
    """`ROOT/scenes/NAME` (prepared), `ROOT/references/NAME` (fitted), `ROOT/networks/NAME` (trained), `ROOT/runs/...`."""

    root: Path

    def scene(self, name: str) -> Path:
        return self.root / "scenes" / name

    def reference(self, name: str) -> Path:
        return self.root / "references" / name

    def network(self, name: str) -> Path:
        return self.root / "networks" / name

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def scene_names(self) -> list[str]:
        """Names of the prepared scenes, sorted."""
        return sorted(p.parent.name for p in (self.root / "scenes").glob("*/transforms.json"))

    def reference_names(self) -> list[str]:
        """Names of the fitted references, sorted."""
        return sorted(p.parent.name for p in (self.root / "references").glob("*/reference.json"))


def open_workspace(root: Path | None) -> Workspace:
    """The workspace at `root`, else at $SPLATAD_WORKSPACE, else `./splatad-work`. Nothing is created."""
    return Workspace(root or Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_NAME))
