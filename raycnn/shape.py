"""The shape of an image."""

from typing import NamedTuple


class Shape(NamedTuple):
    """The shape of one image: channels, and height and width in pixels."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))
