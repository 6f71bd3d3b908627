"""The time of a step by the number of workers: simulated from measurements, and checked.

    uv run python -m benchmarks.scaling [JOB] [--gbit-per-s 10] [--latency-us 50]

Measured are the steps of one worker of one thread at several batch sizes, and gloo's all-reduce
between two processes here. From these follow the steps of 1, 2 and 4 workers on this machine,
printed beside those of real processes; then those of up to 64 workers, with a core each, in a
network of the given speed. One process with two threads and two workers on a local Ray stand beside
them. The job's data must be at hand (RAYCNN_DATA).

A step is simulated as DDP works: the backward pass, two thirds of the time, produces gradients
from the last layer to the first; a bucket of them is reduced once it is full, one at a time, in a
ring of 2 (N - 1) messages of 1/N of the bucket (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002).
"""

import argparse
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.speed import raycnn_rate, torchrun
from raycnn.config.load import load_job
from raycnn.runs.preflight import resolve_job

STEPS, EPOCHS = 10, 4  # of a measurement; the first epoch is left out
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20  # bytes: the defaults of DDP
BACKWARD = 2 / 3  # share of a step's computation
ALL_REDUCE = """
import os, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
for size in map(int, sys.argv[1:]):
    tensor = torch.zeros(size // 4)
    times = []
    for _ in range(12):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        print(size, sorted(times)[6])
"""


@dataclass(frozen=True)
class Network:
    """The seconds of a message of `n` bytes: latency + n / bandwidth."""

    latency: float
    bandwidth: float

    def all_reduce(self, size: float, workers: int) -> float:
        """Return the seconds to reduce `size` bytes over a ring of workers."""
        return 2 * (workers - 1) * (self.latency + size / workers / self.bandwidth)


@dataclass(frozen=True)
class Compute:
    """The seconds of a step without communication: fixed + per_image * images."""

    fixed: float
    per_image: float

    def step(self, images: float) -> float:
        return self.fixed + self.per_image * images


def images_per_s(job: str, batch: int, workers: int, threads: int, launcher: str) -> float:
    """Train briefly, and return the images per second of the median epoch after the first."""
    changes = [
        f"data.limit={STEPS * batch}", "data.val=0", f"train.epochs={EPOCHS}",
        f"train.batch_size={batch}", f"workers.cpus={threads}", f"workers.count={workers}",
        f"workers.launcher={launcher}", "storage.report=false",
    ]  # fmt: skip
    return raycnn_rate(job, changes, processes=workers if launcher == "local" else 1)


def measure_compute(job: str, batch: int) -> Compute:
    """Fit a line to the steps of one worker at three batch sizes."""
    sizes = [batch, batch // 2, batch // 4]
    seconds = [size / images_per_s(job, size, 1, 1, "local") for size in sizes]
    per_image, fixed = np.polyfit(sizes, seconds, 1)
    return Compute(max(0.0, float(fixed)), float(per_image))


def measure_network() -> Network:
    """Fit a line to gloo's all-reduce between two processes on this machine."""
    sizes = [1 << power for power in (12, 16, 20, 22, 24, 25)]
    with TemporaryDirectory() as folder:
        script = Path(folder, "reduce.py")
        script.write_text(ALL_REDUCE)
        command = [*torchrun(2), str(script), *map(str, sizes)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = dict(map(float, line.split()) for line in done.stdout.splitlines())
    # Between two, the ring is two messages of half the bytes: 2 * latency + bytes / bandwidth.
    latency = seconds[sizes[0]] / 2
    slope = np.polyfit(sizes, [seconds[size] for size in sizes], 1)[0]
    return Network(latency, 1 / float(slope))


def buckets(gradients: list[int]) -> list[int]:
    """Group the bytes of each parameter's gradient, last layer first, into DDP's buckets."""
    grouped, limit = [0], FIRST_BUCKET
    for size in reversed(gradients):
        if grouped[-1] >= limit:
            grouped.append(0)
            limit = BUCKET
        grouped[-1] += size
    return grouped


def step_s(seconds: float, sizes: list[int], network: Network, workers: int) -> float:
    """Return the seconds of a step that computes for `seconds` and reduces buckets meanwhile."""
    total, ready_bytes, reduced = sum(sizes), 0, 0.0
    for size in sizes:
        ready_bytes += size
        ready = seconds * (1 - BACKWARD + BACKWARD * ready_bytes / total)
        reduced = max(ready, reduced) + network.all_reduce(size, workers)
    return max(seconds, reduced)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("job", nargs="?", default="lenet-mnist-published")
    parser.add_argument("--gbit-per-s", type=float, default=10)
    parser.add_argument("--latency-us", type=float, default=50)
    args = parser.parse_args()
    job = load_job(Path(args.job))
    batch, cores = job.train.batch_size, len(os.sched_getaffinity(0))
    sizes = buckets([p.numel() * 4 for p in resolve_job(job).model.parameters() if p.requires_grad])
    compute, here = measure_compute(args.job, batch), measure_network()
    print(f"{args.job}, batch {batch}: {compute}; here {here}; buckets of {sizes} bytes")

    print(f"{'workers':>8}{'simulated':>11}{'measured':>10}{'ratio':>7}   images/s, {cores} cores")
    for workers in (1, 2, 4):
        shared = compute.step(batch / workers) * max(1, workers / cores)
        simulated = batch / step_s(shared, sizes, here, workers)
        measured = images_per_s(args.job, batch, workers, 1, "local")
        ratio = simulated / measured
        print(f"{workers:>8}{simulated:>11.0f}{measured:>10.0f}{ratio:>7.2f}", flush=True)
    for name, workers, threads, launcher in (
        ("one process, two threads", 1, 2, "local"),
        ("two workers on Ray", 2, 1, "ray"),
    ):
        rate = images_per_s(args.job, batch, workers, threads, launcher)
        print(f"{name}: {rate:.0f} images/s", flush=True)

    print(f"\nsimulated: {args.gbit_per_s:g} Gbit/s, {args.latency_us:g} us, a core per worker")
    print(f"{'workers':>8}{'step ms':>9}{'images/s':>10}{'efficiency':>12}")
    network = Network(args.latency_us * 1e-6, args.gbit_per_s * 1e9 / 8)
    for workers in (1, 2, 4, 8, 16, 32, 64):
        seconds = step_s(compute.step(batch / workers), sizes, network, workers)
        efficiency = compute.step(batch) / workers / seconds
        print(f"{workers:>8}{seconds * 1e3:>9.2f}{batch / seconds:>10.0f}{efficiency:>12.2f}")


if __name__ == "__main__":
    main()
