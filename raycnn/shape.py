"""The shape of one image."""

from typing import NamedTuple


class Shape(NamedTuple):
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))
