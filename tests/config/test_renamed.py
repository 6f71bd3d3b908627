"""What was renamed: an old name is refused, and the message has the new one."""

from typing import Any

import pytest

from raycnn.config.components import DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS
from raycnn.config.renamed import NAMES, OPTIONS
from raycnn.config.schema import ComponentConfig
from raycnn.errors import SpecError

TABLES: dict[str, Any] = {
    table.section: table for table in (DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS)
}
HAVE_IT: dict[str, dict[str, Any]] = {
    "data": {"name": "hdf5"},
    "model": {"name": "vgg11"},
    "optimizer": {"name": "adamw", "lr": 0.1},
    "schedule": {"name": "one_cycle"},
}


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [(section, *pair) for section, pairs in NAMES.items() for pair in pairs.items()],
)
def test_an_old_component_name_is_answered_with_the_new_one(
    section: str, old: str, new: str
) -> None:
    with pytest.raises(SpecError) as raised:
        TABLES[section].builder(old)
    assert new in str(raised.value) and new in TABLES[section].names()


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [(section, *pair) for section, pairs in OPTIONS.items() for pair in pairs.items()],
)
def test_an_old_option_is_answered_with_the_new_one(section: str, old: str, new: str) -> None:
    choice = ComponentConfig.model_validate(HAVE_IT[section] | {old: 1})
    with pytest.raises(SpecError) as raised:
        TABLES[section].options(choice)
    assert new in str(raised.value) and raised.value.key == f"{section}.{old}"
