"""Names that a spec used to have: a file that still has one is told the new one."""

NAMES = {
    "data.transforms": {
        "pad_crop": "random_crop",
        "flip": "horizontal_flip",
        "colour_jitter": "color_jitter",
        "centre_crop": "center_crop",
    },
}
"""By section of the spec, the names of entries."""

OPTIONS = {
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
"""By section of the spec, the options of entries."""


def renamed(table: dict[str, dict[str, str]], section: str, name: str) -> str | None:
    """Return the sentence for a name that was renamed, None for any other."""
    new = table.get(section, {}).get(name)
    return f"{name!r} is now called {new}" if new else None
