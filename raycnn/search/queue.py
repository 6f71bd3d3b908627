"""The queue of a search: the next trial, and its changes."""

from raycnn.config.search import Pool, TrialKey
from raycnn.config.yaml_file import Tree
from raycnn.search.folder import Search, Trial
from raycnn.search.leaderboard import configuration_entry
from raycnn.search.population import next_trials
from raycnn.search.samplers import make_sampler


class TrialQueue:
    """Hands out the trials that have not ended, and reports ended ones to the samplers.

    A resumed search rebuilds it from the folder.
    """

    def __init__(self, search: Search):
        self.search = search
        self.changes: dict[tuple[str, int], Tree] = {}
        """The changes of each started configuration, by architecture and number."""
        for trial in search.trials():
            info = trial.info
            self.changes[info["architecture"], info["number"]] = info["changes"]
        self.samplers = {a.name: make_sampler(search.spec, a) for a in search.spec.architectures}
        for name, number in self.changes:
            self._tell(name, number)
        self.running: dict[str, TrialKey] = {}
        self.waiting = next_trials(search)

    def take(self, pool: Pool) -> Trial:
        """Start or continue the next trial, in a pool."""
        key = self.waiting.pop(0)
        configuration = key.architecture.name, key.number
        if configuration not in self.changes:
            sampler = self.samplers[key.architecture.name]
            self.changes[configuration] = sampler.changes(key.number)
        trial = self.search.begin(key, self.changes[configuration], pool)
        self.running[trial.id] = key
        return trial

    def put_back(self, trial: Trial) -> None:
        """Return a trial to the front of the queue after its worker was lost."""
        self.waiting.insert(0, self.running.pop(trial.id))

    def complete(self, trial: Trial) -> None:
        """Record a trial that has ended, or paused for the others of its population."""
        key = self.running.pop(trial.id)
        self._tell(key.architecture.name, key.number)
        self.waiting = next_trials(self.search, self.running)

    def _tell(self, architecture: str, number: int) -> None:
        entry = configuration_entry(self.search, architecture, number)
        if entry.state == "unfinished":
            return
        known = entry.metric is not None and entry.state != "failed"
        value = self.search.spec.tune.sign * (entry.metric or 0.0) if known else None
        self.samplers[architecture].tell(self.changes[architecture, number], value)
