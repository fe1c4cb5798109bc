"""What nerfstudio finds of splatad by its entry points: a data parser that leaves a prepared scene's world as it is.

`ns-train splatfacto splatad-data --data splatad-work/scenes/NAME`, then `ns-export gaussian-splat`; what comes out stands in
the scene's world and is taken by `splatad fit --class NAME --splats splat.ply` as it is. Only nerfstudio imports this
module; splatad does not depend on it. There is no method of our own: nerfstudio trains its own models here, and our fit runs
by `splatad fit`.
"""

from __future__ import annotations

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

splatad_data = DataParserSpecification(
    config=NerfstudioDataParserConfig(
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        load_3D_points=True,
    ),
    description="A scene of `splatad prepare`, its world not turned, moved or scaled",
)
