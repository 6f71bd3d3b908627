"""`raycnn schema`."""

import json
from typing import Annotated, Any

import typer


def schema(
    search: Annotated[bool, typer.Option("--search", help="Of a file for `raycnn tune`.")] = False,
) -> None:
    """Print the JSON schema of a job spec, for editors."""
    from raycnn import spec
    from raycnn.catalogue import Catalogue, with_options
    from raycnn.data import DATASETS
    from raycnn.data.augment import TRANSFORMS
    from raycnn.models import MODELS
    from raycnn.optim import OPTIMIZERS, SCHEDULES
    from raycnn.search import spec as searches
    from raycnn.search.stopping import RULES

    tables: list[Catalogue[Any]] = [DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS]
    drawn = (
        with_options(searches.schema(), [*tables, RULES])
        if search
        else with_options(spec.schema(), tables)
    )
    print(json.dumps(drawn, indent=2))
