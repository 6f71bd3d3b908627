"""What the tests of the transforms share."""

from typing import Any

from raycnn.config.schema import Choice
from raycnn.data.transforms.pipeline import TRANSFORMS

NEEDED: dict[str, dict[str, Any]] = {
    "centre_crop": {"size": [7, 8]},
    "colour_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "pad_crop": {"padding": 2},
    "random_resized_crop": {"size": [7, 10]},
    "resize": {"size": 7},
}
EVERY = [Choice(name=name, **NEEDED.get(name, {})) for name in TRANSFORMS.names()]
"""Each transform there is, with the options it cannot do without."""
