"""Renamed components, options and commands, so that errors about an old name give the new one."""

NAMES = {
    "data.transforms": {
        "pad_crop": "random_crop",
        "flip": "horizontal_flip",
        "colour_jitter": "color_jitter",
        "centre_crop": "center_crop",
    },
}
"""Old to new component names, by section of the spec."""

OPTIONS = {
    "data": {"white": "max_value"},
    "model": {"pooled": "pool_size"},
    "optimizer": {"beta1": "betas", "beta2": "betas"},
    "schedule": {
        "rise": "pct_start",
        "at": "milestones",
        "start": "div_factor",
        "final": "final_div_factor (one_cycle) or end_factor (cosine)",
        "momentum": "max_momentum and base_momentum",
    },
}
"""Old to new option names, by section of the spec."""


COMMANDS = {"command": {"parity": "compare-devices"}}
"""Old to new names of commands."""


def renamed(table: dict[str, dict[str, str]], section: str, name: str) -> str | None:
    """Return the error message for a renamed name, None for any other."""
    new = table.get(section, {}).get(name)
    return f"{name!r} is now called {new}" if new else None
