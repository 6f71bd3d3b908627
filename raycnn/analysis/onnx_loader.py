"""Classify pictures: python predict.py PICTURE... (needs numpy, pillow and onnxruntime)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "export.json").read_text())
HEIGHT, WIDTH = ABOUT["preprocessing"]["size"]
MODE = {1: "L", 3: "RGB", 4: "RGBA"}[ABOUT["preprocessing"]["channels"]]
WHITE = ABOUT["preprocessing"]["max_value"]  # in pictures of more than 8 bits


def eight_bits(image, path):
    if image.mode[0] not in "IF":
        return image
    levels = np.asarray(image)
    if not (WHITE and levels.min() >= 0 and levels.max() <= WHITE):  # also for NaN
        sys.exit(f"{path}: the network was not trained on pictures with such values")
    if levels.dtype.kind in "iu" and WHITE in (255, 1023, 4095, 16383, 65535):
        return Image.fromarray((levels >> (int(WHITE).bit_length() - 8)).astype(np.uint8))
    return Image.fromarray(np.rint(levels * (255 / WHITE)).astype(np.uint8))


def pixels(path):  # -> (1, C, HEIGHT, WIDTH) uint8
    image = Image.open(path)
    image.draft(None, (2 * max(HEIGHT, WIDTH),) * 2)  # a large JPEG at a fraction of its size
    image = eight_bits(ImageOps.exif_transpose(image), path).convert(MODE)
    left = top = 0.0
    if ABOUT["preprocessing"]["fit"] == "crop":  # the largest box in the middle
        scale = min(image.width / WIDTH, image.height / HEIGHT)
        left, top = (image.width - WIDTH * scale) / 2, (image.height - HEIGHT * scale) / 2
    box = max(left, 0), max(top, 0), image.width - left, image.height - top
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box)
    return np.array(image).reshape(1, HEIGHT, WIDTH, -1).transpose(0, 3, 1, 2)


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(HERE / "model.onnx")
    for path in sys.argv[1:]:
        try:
            images = pixels(path)
        except OSError as error:
            sys.exit(f"{path} cannot be read: {error}")
        probabilities = session.run(["probabilities"], {"images": images})[0][0]
        best = [probabilities.argmax()]
        if ABOUT["multi_label"]:  # any number of classes
            best = np.flatnonzero(probabilities >= 0.5)
        print(path, *(f"{ABOUT['classes'][k]} {probabilities[k]:.2%}" for k in best))
