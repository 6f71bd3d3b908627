from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from raycnn.config.components import DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS
from raycnn.config.registry import Registry, with_options
from raycnn.config.schema import ComponentConfig, json_schema
from raycnn.errors import SpecError


def tower(
    base: int,
    *,
    height: Annotated[float, Field(gt=0)] = 2.0,
    roof: Literal["a", "b"],
    form: Annotated[str, Field(pattern="^[a-z]+$")] = "round",
) -> Any:
    return base, height, roof


TOWERS: Registry[Any] = Registry("tower", "tower", {"tower": tower})
TABLES: list[Registry[Any]] = [DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS]


def test_keyword_only_parameters_are_the_options() -> None:
    assert TOWERS.build(ComponentConfig(name="tower", roof="a", height=3), 1) == (1, 3.0, "a")
    assert TOWERS.build(ComponentConfig(name="tower", roof="b"), 1) == (1, 2.0, "b")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            {"name": "towr"},
            "tower.name: unknown tower 'towr'; did you mean 'tower'? (towers: tower)",
        ),
        ({"name": "tower"}, "tower.roof: is missing"),
        ({"name": "tower", "roof": "c"}, "tower.roof: must be 'a' or 'b', not 'c'"),
        (
            {"name": "tower", "roof": "a", "height": 0},
            "tower.height: must be greater than 0, not 0",
        ),
        ({"name": "tower", "roof": "a", "height": float("nan")}, "tower.height: must be"),
        ({"name": "tower", "roof": "a", "base": 1}, "tower.base: unknown tower option 'base'"),
        ({"name": "tower", "roof": "a", "heigth": 1}, "did you mean 'height'?"),
        (
            {"name": "tower", "roof": "a", "form": "ROUND"},
            "tower.form: String should match pattern",
        ),
    ],
)
def test_a_wrong_choice_is_refused_with_the_nearest_name(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        TOWERS.options(ComponentConfig(**choice))
    assert said in str(caught.value)


def test_the_schema_lists_every_name_with_its_options() -> None:
    drawn = with_options(json_schema(), TABLES)
    model = drawn["properties"]["model"]["anyOf"]
    assert model[0] == {"enum": MODELS.names()}
    lenet = next(entry for entry in model[1:] if entry["properties"]["name"]["const"] == "lenet")
    assert lenet["properties"]["activation"]["enum"] == ["sigmoid", "tanh", "relu"]
    transforms = drawn["$defs"]["Data"]["properties"]["transforms"]["items"]["anyOf"]
    assert transforms[0] == {"enum": TRANSFORMS.names()}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.section)
def test_every_option_has_a_type_the_spec_can_check(table: Registry[Any]) -> None:
    for name in table.names():
        table.schema(name).model_json_schema()
