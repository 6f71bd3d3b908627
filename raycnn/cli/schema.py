"""The command `raycnn schema`: print the JSON schema of a spec."""

import json
from typing import Annotated, Any

import typer


def schema(
    search: Annotated[bool, typer.Option("--search", help="Of a file for `raycnn tune`.")] = False,
) -> None:
    """Print the JSON schema of a job spec, for editors."""
    from raycnn.config.components import DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS
    from raycnn.config.registry import Registry, with_options
    from raycnn.config.schema import json_schema
    from raycnn.config.search import search_json_schema
    from raycnn.search.schedulers import SCHEDULERS

    tables: list[Registry[Any]] = [DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS]
    drawn = (
        with_options(search_json_schema(), [*tables, SCHEDULERS])
        if search
        else with_options(json_schema(), tables)
    )
    print(json.dumps(drawn, indent=2))
