"""Summaries of the searches below a folder."""

from collections.abc import Iterator
from dataclasses import dataclass

from raycnn.errors import SpecError, first_line
from raycnn.search.folder import Search
from raycnn.search.leaderboard import leaderboard, winners


@dataclass(frozen=True)
class SearchSummary:
    """One row of a list of searches."""

    name: str
    state: str
    """done, running, stopped or damaged."""
    ended: int = 0
    """Number of trials that have ended."""
    trials: int = 0
    """Number of trials in all."""
    metric: str = ""
    best: float | None = None
    """The metric of the best trial."""
    winner: str | None = None
    """The name of the best trial."""
    error: str | None = None
    """Why a damaged search cannot be read."""


def summarize_searches(root: str) -> Iterator[SearchSummary]:
    """Yield the summaries of all searches below a folder or URI, sorted by name and number."""
    for search in Search.all(root):
        try:
            yield _summary(search)
        except SpecError as error:  # corrupt, or of another version: list the rest
            yield SearchSummary(search.name, "damaged", error=first_line(error))


def _summary(search: Search) -> SearchSummary:
    board = leaderboard(search)
    best = next(iter(winners(board).values()), None)
    return SearchSummary(
        search.name,
        search.state(),
        ended=sum(entry.state != "unfinished" for entry in board),
        trials=len(search.spec.trials()),
        metric=search.spec.tune.metric,
        best=best.metric if best else None,
        winner=best.trial if best else None,
    )
