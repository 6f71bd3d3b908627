"""Population based training (Jaderberg et al. 2017, arXiv:1711.09846), a generation at a time.

The trials of an architecture are its population. When all of them have been trained for an interval
the worst become copies of some of the best, weights, optimizer and history, and go on with settings
a little beside theirs. What a member's job says is its whole descent, as stages: trained by itself
it comes to the same. All of it follows from the seed and the scores, and each score is noted before
any member is changed: a search that is killed in the middle goes on to the very same.
"""

import math
import shutil

from raycnn import io
from raycnn.config.search import Architecture
from raycnn.config.yaml_file import Tree
from raycnn.search.folder import TAKE_OVER_S, Search, Trial
from raycnn.search.samplers import unit
from raycnn.search.schedulers import Pbt
from raycnn.training import checkpoint
from raycnn.training.callbacks import TrialExploited

Turn = tuple[Architecture, int]


def next_trials(search: Search) -> list[Turn]:
    """The trials to train now; of a population, once all are there, after what they have become."""
    waiting = search.waiting()
    if isinstance(search.rule, Pbt):
        for architecture in search.spec.architectures:
            living = [search.trial(a, number) for a, number in waiting if a is architecture]
            _Population(search, search.rule, architecture, living).go_on()
    return [(a, n) for a, n in waiting if not _arrived(search, search.trial(a, n))]


def _arrived(search: Search, trial: Trial) -> bool:
    """Whether it has nothing to do before its next generation."""
    facts = trial.facts
    return bool(facts) and facts["epochs"] > search.until(trial) == len(trial.rows())


class _Population:
    """The trials of one architecture that have not ended."""

    def __init__(self, search: Search, rule: Pbt, architecture: Architecture, living: list[Trial]):
        self.search, self.rule, self.architecture = search, rule, architecture
        self.living = living
        self.generation = min((self._generation(member) for member in living), default=0)

    def go_on(self) -> None:
        """Begin the next generation, or finish beginning it, if all of this one are there."""
        to_change = [m for m in self.living if self._generation(m) == self.generation]
        if not all(_arrived(self.search, member) for member in to_change):
            return
        for member in to_change:
            self._note_score(member)
        ranked = sorted(self.living, key=lambda m: (-self._score(m), m.facts["number"]))
        count = min(math.ceil(len(ranked) * self.rule.quantile), len(ranked) // 2)
        best, worst = ranked[:count], [member.id for member in ranked[len(ranked) - count :]]
        for member in to_change:
            if member.id in worst:
                self._become(member, best[int(self._unit(member, "parent") * count)])
            member.note(generation=self.generation + 1)

    def _generation(self, member: Trial) -> int:
        return int(member.facts.get("generation", 0))

    def _score(self, member: Trial) -> float:
        return float(member.facts["scores"][self.generation])

    def _note_score(self, member: Trial) -> None:
        """Of its latest epoch: its weights are what a copy would go on from."""
        scores = member.facts.get("scores", [])
        if len(scores) == self.generation:
            latest = member.course(self.search.spec.tune).values[-1]
            member.note(scores=[*scores, latest])

    def _become(self, member: Trial, parent: Trial) -> None:
        """Whatever of it is done before a kill is done again: the parent is not changed by it."""
        epoch, facts = self.search.until(member), parent.facts
        changes = self._beside(member, facts["changes"])
        job = parent.run.job()
        stages = [*job.tree()["stages"], {"epoch": epoch, "changes": changes}]
        with member.run.lock(TAKE_OVER_S):
            checkpoint.copy_all(parent.run.checkpoints, member.run.checkpoints)
            with io.atomic_path(member.run.folder / "metrics.csv") as temporary:
                shutil.copy(parent.run.folder / "metrics.csv", temporary)
            member.run.write_job(job.change({"stages": stages}))
        said = f"after {epoch} epochs from {parent.id}"
        member.run.add_event(TrialExploited(parent=parent.id, epoch=epoch))
        descent = "; ".join(filter(None, [facts.get("descent"), said]))
        member.note(changes=changes, descent=descent)

    def _beside(self, member: Trial, changes: Tree) -> Tree:
        found = {}
        for key, domain in self.architecture.space.items():
            if self._unit(member, key, "resample") < self.rule.resample:
                found[key] = domain.value(self._unit(member, key, "value"))
            else:
                found[key] = domain.beside(changes[key], self._unit(member, key, "beside"))
        return found

    def _unit(self, member: Trial, *what: str) -> float:
        own = (self.architecture.name, self.generation, member.facts["number"])
        return unit(self.search.spec.tune.seed, *own, *what)
