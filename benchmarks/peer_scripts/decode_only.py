"""Decode all pictures in random order and equal shares, and do nothing else: the ceiling."""

import multiprocessing
import random
import time

from common import mark
from reading import arguments

from raycnn.data.images.decode import ImageFormat, decode
from raycnn.shape import Shape

args = arguments()
pictures = [(path.name, str(path)) for path in sorted(args.data.rglob("*.jpg"))]
random.Random(0).shuffle(pictures)
image_format = ImageFormat(Shape(3, args.size, args.size), "crop")


def decode_share(number: int) -> None:
    for picture in pictures[number :: args.processes]:
        decode(picture, image_format)


with multiprocessing.get_context("fork").Pool(args.processes) as pool:
    for _ in range(args.epochs):
        start = time.perf_counter()
        pool.map(decode_share, range(args.processes), chunksize=1)
        mark(images_per_s=len(pictures) / (time.perf_counter() - start))
