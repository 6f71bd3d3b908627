"""What each trial changes: drawn alone, or by Optuna from what earlier trials came to.

A drawn trial is a pure function of (seed, architecture, number, key): another architecture, key or
order of running changes none of the others.
"""

import hashlib
from itertools import product
from typing import Any, Protocol

from raycnn.config.search import Architecture, Domain, TuneSpec
from raycnn.config.yaml_file import Tree
from raycnn.runtime import rng


def unit(seed: int, *keys: int | str) -> float:
    """0 ≤ u < 1, random, a function of these alone."""
    bits = rng.number(seed, *(_digest(key) if isinstance(key, str) else key for key in keys))
    return (bits >> 10) * 2.0**-53  # as many bits as a float holds: never 1.0


class Sampler(Protocol):
    """Says what the trials of one architecture change."""

    def changes(self, number: int) -> Tree:
        """Of the trial of this number, asked for once: dotted keys and their values."""

    def tell(self, changes: Tree, value: float | None) -> None:
        """What a trial came to, more being better; None when it failed."""


def make_sampler(search: TuneSpec, architecture: Architecture, begun: int = 0) -> Sampler:
    """`begun`: how many of the architecture's trials another process has drawn."""
    if search.tune.searcher == "optuna" and architecture.space:
        return OptunaSampler(search.tune.seed, architecture, begun)
    return RandomSampler(search.tune.seed, architecture)


class RandomSampler:
    """Points of the grid in turn, all else at random."""

    def __init__(self, seed: int, architecture: Architecture):
        self.seed, self.architecture = seed, architecture

    def changes(self, number: int) -> Tree:
        grid = self.architecture.grid
        points = list(product(*grid.values()))
        point = dict(zip(grid, points[number % len(points)], strict=True))
        own = (self.architecture.name, number)
        return {
            key: point[key] if key in grid else domain.value(unit(self.seed, *own, key))
            for key, domain in self.architecture.space.items()
        }

    def tell(self, changes: Tree, value: float | None) -> None:
        pass


class OptunaSampler:
    """Optuna's TPE: tree-structured Parzen estimators (Bergstra et al., NIPS 2011)."""

    def __init__(self, seed: int, architecture: Architecture, begun: int):
        import optuna  # slow to import

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=rng.number(seed, _digest(architecture.name), begun) % 2**32
        )
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.space = architecture.space
        self.distributions = {key: _distribution(domain) for key, domain in self.space.items()}
        self.asked: dict[str, Any] = {}

    def changes(self, number: int) -> Tree:
        trial = self.study.ask(self.distributions)
        drawn = {key: _value(domain, trial.params[key]) for key, domain in self.space.items()}
        self.asked[str(sorted(drawn.items()))] = trial
        return drawn

    def tell(self, changes: Tree, value: float | None) -> None:
        import optuna

        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        if asked := self.asked.pop(str(sorted(changes.items())), None):
            self.study.tell(asked, value, state=state)
            return
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
    if domain.randint:
        return parameter
    return domain.rounded(parameter)


def _parameter(domain: Domain, value: Any) -> Any:
    return domain.choice.index(value) if domain.choice else value


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
