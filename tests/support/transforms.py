"""The transforms, each with the options that it needs."""

from typing import Any

from raycnn.config.components import TRANSFORMS
from raycnn.config.schema import ComponentConfig

NEEDED: dict[str, dict[str, Any]] = {
    "center_crop": {"size": [7, 8]},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "random_crop": {"padding": 2},
    "random_resized_crop": {"size": [7, 10]},
    "resize": {"size": 7},
}
EVERY = [ComponentConfig(name=name, **NEEDED.get(name, {})) for name in TRANSFORMS.names()]
"""Each transform there is, with the options it cannot do without."""
