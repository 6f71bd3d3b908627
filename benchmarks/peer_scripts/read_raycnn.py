"""Read with raycnn's loader, from a stream."""

from reading import Training, arguments

from raycnn.config.load import job_from_tree
from raycnn.data.splits import open_splits
from raycnn.runtime.device import find

args = arguments()
data = {"name": "folder", "root": str(args.data), "size": args.size, "cache": "stream", "val": 0}
train = {"epochs": args.epochs, "batch_size": args.batch}
job = job_from_tree({"name": "read", "data": data, "model": "lenet", "train": train})
device = find("cpu").select(0, args.processes)
splits = open_splits(job)
loader = splits.loader("train", job, device, training=True)
training = Training(args.size, len(splits.classes))
for epoch in range(args.epochs):
    training.epoch((batch.images, batch.labels) for batch in loader.epoch(epoch))
