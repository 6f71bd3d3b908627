"""Train the same job from several seeds: how much of an accuracy is luck?

python examples/seeds.py jobs/quickstart.yaml workers.count=1
"""

import sys
from statistics import mean, stdev

import raycnn
from raycnn.config.changes import parse_changes

SEEDS = range(3)


def main(job: str, changes: list[str]) -> None:
    accuracies = []
    for seed in SEEDS:
        run = raycnn.train(job, progress=False, **parse_changes(changes), seed=seed)
        accuracies.append(run.result["test"]["acc1"])
        print(f"seed {seed}: {accuracies[-1]:.2%}  {run.folder}")
    print(f"{mean(accuracies):.2%} ± {stdev(accuracies):.2%}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
