"""Population based training (Jaderberg et al. 2017, arXiv:1711.09846), in generations.

The trials of an architecture are its population. When all of them have trained for an interval, the
worst copy the weights, optimizer and history of some of the best (exploit) and continue with
perturbed settings (explore). A member's job records its whole lineage as stages, so training that
job alone gives the same result. All decisions follow from the seed and the scores, and all scores
are saved before any member changes, so a search that was killed resumes exactly.
"""

import math
import shutil
from collections.abc import Collection

from raycnn.config.search import Architecture, TrialKey
from raycnn.config.yaml_file import Tree
from raycnn.io import atomic_path
from raycnn.search.folder import TRIAL_LOCK_TIMEOUT_S, Search, Trial
from raycnn.search.samplers import keyed_uniform
from raycnn.search.schedulers import Pbt
from raycnn.training import checkpoint_folder
from raycnn.training.callbacks import TrialExploited


def next_trials(search: Search, running: Collection[str] = ()) -> list[TrialKey]:
    """Return the trials to train now; once a generation is complete, start the next one.

    `running` has the ids of those that are being trained.
    """
    unfinished = search.unfinished()
    if isinstance(search.scheduler, Pbt):
        for architecture in search.spec.architectures:
            members = [search.trial(key) for key in unfinished if key.architecture is architecture]
            # A member may still be writing its last records.
            if not any(member.id in running for member in members):
                _Population(search, search.scheduler, architecture, members).advance()
    waiting = (key for key in unfinished if key.id not in running)
    return [key for key in waiting if not _paused(search, search.trial(key))]


def _paused(search: Search, trial: Trial) -> bool:
    """Return whether a trial waits for its next generation."""
    info = trial.info
    if not info:
        return False
    pause_epoch = search.pause_epoch(trial)
    has_reached_it, has_more_epochs = len(trial.rows()) == pause_epoch, info["epochs"] > pause_epoch
    return has_reached_it and has_more_epochs


class _Population:
    """The trials of one architecture that have not ended."""

    def __init__(self, search: Search, pbt: Pbt, architecture: Architecture, members: list[Trial]):
        self.search, self.pbt, self.architecture = search, pbt, architecture
        self.members = members
        self.generation = min((self._generation(member) for member in members), default=0)

    def advance(self) -> None:
        """Start the next generation if all members have paused, or finish starting it."""
        to_change = [m for m in self.members if self._generation(m) == self.generation]
        if not to_change or not all(_paused(self.search, member) for member in to_change):
            return
        for member in to_change:
            self._save_score(member)
        self.search.flush(wait=True)  # at a URI, too, all scores come before any copy
        with self.search.changing():
            self._start_generation(to_change)

    def _start_generation(self, to_change: list[Trial]) -> None:
        ranked = sorted(self.members, key=lambda m: (-self._score(m), m.info["number"]))
        count = min(math.ceil(len(ranked) * self.pbt.quantile), len(ranked) // 2)
        best, worst = ranked[:count], [member.id for member in ranked[len(ranked) - count :]]
        for member in to_change:
            if member.id in worst:
                self._exploit(member, best[int(self._uniform(member, "parent") * count)])
            member.update(generation=self.generation + 1)

    def _generation(self, member: Trial) -> int:
        return int(member.info.get("generation", 0))

    def _score(self, member: Trial) -> float:
        return float(member.info["scores"][self.generation])

    def _save_score(self, member: Trial) -> None:
        """Save the metric of the latest epoch, whose weights a copy would start from."""
        scores = member.info.get("scores", [])
        if len(scores) == self.generation:
            latest = member.curve(self.search.spec.tune).values[-1]
            member.update(scores=[*scores, latest])

    def _exploit(self, member: Trial, parent: Trial) -> None:
        """Make a member a perturbed copy of its parent, which does not change.

        Idempotent: after a kill it is repeated from the start.
        """
        epoch, info = self.search.pause_epoch(member), parent.info
        changes = self._perturb(member, info["changes"])
        job = parent.run.job()
        stages = [*job.tree()["stages"], {"epoch": epoch, "changes": changes}]
        with member.run.lock(TRIAL_LOCK_TIMEOUT_S):
            checkpoint_folder.copy_all(parent.run.checkpoints, member.run.checkpoints)
            with atomic_path(member.run.folder / "metrics.csv") as temporary:
                shutil.copy(parent.run.folder / "metrics.csv", temporary)
            member.run.write_job(job.change({"stages": stages}))
        event = TrialExploited(parent=parent.id, epoch=epoch)
        member.run.add_event(event)
        lineage = "; ".join(filter(None, [info.get("lineage"), event.message]))
        member.update(changes=changes, lineage=lineage)

    def _perturb(self, member: Trial, changes: Tree) -> Tree:
        """Return settings near those of the parent, some of them resampled."""
        perturbed = {}
        for key, domain in self.architecture.space.items():
            if self._uniform(member, key, "resample") < self.pbt.resample:
                perturbed[key] = domain.at_quantile(self._uniform(member, key, "value"))
            else:
                perturbed[key] = domain.perturb(changes[key], self._uniform(member, key, "perturb"))
        return perturbed

    def _uniform(self, member: Trial, *what: str) -> float:
        keys = (self.architecture.name, self.generation, member.info["number"])
        return keyed_uniform(self.search.spec.tune.seed, *keys, *what)
