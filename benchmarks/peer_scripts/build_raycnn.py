"""Build raycnn's image cache, with the images."""

import time

from common import mark
from reading import arguments

from raycnn.config.load import job_from_tree
from raycnn.data.splits import open_splits
from raycnn.runtime.device import find

args = arguments()
data = {"name": "folder", "root": str(args.data), "size": args.size, "cache": "store"}
job = job_from_tree({"name": "build", "data": data, "model": "lenet", "train": {"epochs": 1}})
find("cpu").select(0, args.processes)
start = time.perf_counter()
splits = open_splits(job)
images = sum(len(split.labels) for split in splits.cache.splits.values())
mark(images_per_s=images / (time.perf_counter() - start))
