"""`raycnn schema`."""

import json
from typing import Any


def schema() -> None:
    """Print the JSON schema of a job spec, for editors."""
    from raycnn.catalogue import Catalogue, with_options
    from raycnn.data import DATASETS
    from raycnn.data.augment import TRANSFORMS
    from raycnn.models import MODELS
    from raycnn.optim import OPTIMIZERS, SCHEDULES
    from raycnn.spec import schema as bare

    tables: list[Catalogue[Any]] = [DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS]
    print(json.dumps(with_options(bare(), tables), indent=2))
