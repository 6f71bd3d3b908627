"""Base of all sources of encoded images: decoding options, and the format found with a sample."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from raycnn.data.images.decode import (
    Fit,
    ImageFormat,
    Mode,
    NamedImage,
    TargetSize,
    find_image_format,
)
from raycnn.shape import Shape


class PictureOptions(NamedTuple):
    """Options of decoding, as `find_image_format` takes them."""

    size: TargetSize | None
    fit: Fit
    mode: Mode | None
    max_value: float | None


class PictureSource(ABC):
    """Base class of sources whose images are files, or encoded like files."""

    def __init__(self, options: PictureOptions):
        self._options = options

    @abstractmethod
    def _sample(self) -> Iterable[NamedImage]:
        """Return a sample of the training images, by which the format of all is found."""

    @cached_property
    def image_format(self) -> ImageFormat:
        return find_image_format(*self._options, self._sample())

    @property
    def shape(self) -> Shape:
        return self.image_format.shape

    @property
    def max_value(self) -> float | None:
        return self.image_format.max_value
