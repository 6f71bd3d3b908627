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
MODE = {"rgb": "RGB", "gray": "L", "grey": "L"}[ABOUT["preprocessing"]["mode"]]


def pixels(path):  # -> (1, C, HEIGHT, WIDTH) uint8
    image = Image.open(path)
    image.draft(None, (2 * max(HEIGHT, WIDTH),) * 2)  # a large JPEG at a fraction of its size
    image = ImageOps.exif_transpose(image).convert(MODE)
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
        probabilities = session.run(["probabilities"], {"images": pixels(path)})[0][0]
        best = [probabilities.argmax()]
        if ABOUT["multi_label"]:  # any number of classes
            best = np.flatnonzero(probabilities >= 0.5)
        print(path, *(f"{ABOUT['classes'][k]} {probabilities[k]:.2%}" for k in best))
