"""Samplers of the changes of each trial: a Sobol sequence, or Optuna's TPE.

No two trials of an architecture have the same changes. A configuration from the Sobol sequence is
a function of (seed, architecture, number), so neither other architectures nor the order of
execution matter, and raising the number of trials keeps the earlier ones.
"""

import hashlib
from collections.abc import Iterator
from itertools import product
from typing import Any, Protocol

from raycnn.config.search import Architecture, Domain, Space, TuneSpec
from raycnn.config.yaml_file import Tree
from raycnn.runtime import rng

BLOCK = 64  # points sampled at a time: a power of 2, which keeps a Sobol sequence balanced
ATTEMPTS = 20  # Optuna's tries to suggest new values


def keyed_uniform(seed: int, *keys: int | str) -> float:
    """Return a random number 0 ≤ u < 1, a function of only the seed and the keys."""
    bits = rng.number(seed, *(_digest(key) if isinstance(key, str) else key for key in keys))
    return (bits >> 10) * 2.0**-53  # as many bits as a double holds: never 1.0


class Sampler(Protocol):
    """Protocol of what chooses the changes of an architecture's trials."""

    def changes(self, number: int) -> Tree:
        """Return the dotted keys and values of trial `number`; called once per trial, in order."""

    def tell(self, changes: Tree, value: float | None) -> None:
        """Record the result of a trial, higher being better; None if it failed."""


def make_sampler(search: TuneSpec, architecture: Architecture) -> Sampler:
    """Return the sampler of an architecture."""
    if search.tune.searcher == "optuna" and architecture.space:
        return OptunaSampler(search.tune.seed, architecture)
    return RandomSampler(search.tune.seed, architecture)


class RandomSampler:
    """Cycles through the grid points, sampling the other keys from a scrambled Sobol sequence.

    Sobol points cover a space more evenly than independent ones: Bergstra and Bengio, "Random
    search for hyper-parameter optimization", JMLR 2012, section 3.2.
    """

    def __init__(self, seed: int, architecture: Architecture):
        grid = architecture.grid
        self.points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        self.sequences = [
            _distinct_points(
                architecture.sampled, rng.number(seed, _digest(architecture.name), index)
            )
            for index in range(len(self.points))
        ]
        self.sampled: list[list[Tree]] = [[] for _ in self.points]
        """The sampled values of the other keys, for each point of the grid."""
        self.order = list(architecture.space)

    def changes(self, number: int) -> Tree:
        index, point = divmod(number, len(self.points))
        while len(self.sampled[point]) <= index:
            self.sampled[point].append(next(self.sequences[point]))
        both = self.points[point] | self.sampled[point][index]
        return {key: both[key] for key in self.order}

    def tell(self, changes: Tree, value: float | None) -> None:
        pass


def _distinct_points(space: Space, seed: int) -> Iterator[Tree]:
    """Yield distinct points of a space."""
    if not space:
        yield {}
        return
    from scipy.stats import qmc  # slow to import

    sobol, seen = qmc.Sobol(len(space), rng=seed), set[str]()
    while True:
        for point in sobol.random(BLOCK).tolist():
            changes = {
                key: domain.at_quantile(u)
                for (key, domain), u in zip(space.items(), point, strict=True)
            }
            if (text := _text(changes)) not in seen:
                seen.add(text)
                yield changes


class OptunaSampler:
    """Optuna's TPE: tree-structured Parzen estimators (Bergstra et al., NIPS 2011)."""

    def __init__(self, seed: int, architecture: Architecture):
        import optuna  # slow to import

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(direction="maximize")
        self.seed, self.name = seed, architecture.name
        self.space = architecture.space
        self.distributions = {key: _distribution(domain) for key, domain in self.space.items()}
        self.seen: set[str] = set()
        self.others = _distinct_points(self.space, rng.number(seed, _digest(architecture.name)))

    def changes(self, number: int) -> Tree:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        # One for each trial, so that a resumed search samples what an unbroken one does.
        self.study.sampler = TPESampler(
            seed=rng.number(self.seed, _digest(self.name), number) % 2**32
        )
        for _ in range(ATTEMPTS):
            trial = self.study.ask(self.distributions)
            self.study.tell(trial, state=TrialState.FAIL)  # `tell` adds it, as when resumed
            changes = {key: _value(domain, trial.params[key]) for key, domain in self.space.items()}
            if _text(changes) not in self.seen:
                break
        else:  # few values are left: take any new one
            changes = next(other for other in self.others if _text(other) not in self.seen)
        self.seen.add(_text(changes))
        return changes

    def tell(self, changes: Tree, value: float | None) -> None:
        import optuna

        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        self.seen.add(_text(changes))
        parameters = {key: _parameter(domain, changes[key]) for key, domain in self.space.items()}
        self.study.add_trial(
            optuna.trial.create_trial(
                params=parameters, distributions=self.distributions, value=value, state=state
            )
        )


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.choice:
        return CategoricalDistribution(list(range(len(domain.choice))))
    low, high = domain.ends
    if domain.randint:
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=bool(domain.loguniform))


def _value(domain: Domain, parameter: Any) -> Any:
    if domain.choice:
        return domain.choice[parameter]
    return parameter if domain.randint else domain.rounded(parameter)


def _parameter(domain: Domain, value: Any) -> Any:
    return domain.choice.index(value) if domain.choice else value


def _text(changes: Tree) -> str:
    return str(sorted(changes.items()))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
