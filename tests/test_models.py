import ast
import inspect
import textwrap

import pytest
import torch
from torch import Tensor, nn

from raycnn import models
from raycnn.errors import SpecError
from raycnn.models.alexnet import AlexNet, SmallAlexNet
from raycnn.models.lenet import LeNet
from raycnn.shape import Shape
from raycnn.spec import Choice

GREY, COLOUR, PHOTO = Shape(1, 28, 28), Shape(3, 32, 32), Shape(3, 224, 224)


def build(name: str, shape: Shape, classes: int = 10, **options: object) -> nn.Module:
    return models.build(Choice(name=name, **options), shape, classes)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (build("lenet", GREY), 61_706),
        (build("alexnet", COLOUR), 67_004_746),
        (build("alexnet", PHOTO, 1000), 61_100_840),
    ],
    ids=["lenet", "alexnet-small", "alexnet-large"],
)
def test_a_network_has_the_published_number_of_parameters(model: nn.Module, count: int) -> None:
    assert parameters(model) == count


def noted(comment: str, names: dict[str, int]) -> tuple[int, ...]:
    words = comment.strip(" #()").replace(" ", "").strip("()").split(",")
    return tuple(names[word] if word in names else int(word) for word in words if word)


@pytest.mark.parametrize(
    ("kind", "name", "shape", "options"),
    [
        (LeNet, "lenet", GREY, {}),
        (SmallAlexNet, "alexnet", COLOUR, {"form": "small"}),
        (AlexNet, "alexnet", PHOTO, {"form": "large"}),
    ],
)
def test_the_shapes_noted_beside_forward_are_true(
    kind: type[nn.Module], name: str, shape: Shape, options: dict[str, str]
) -> None:
    """Every line of forward is run by itself and its result compared with its comment."""
    model = build(name, shape, 7, **options).eval()
    source = textwrap.dedent(inspect.getsource(kind.forward))
    lines, body = source.splitlines(), ast.parse(source).body[0].body  # type: ignore[attr-defined]
    letters = {"B": 2, "C": shape.channels, "K": 7}
    scope: dict[str, object] = {"self": model, "x": torch.zeros(2, *shape)}
    assert noted(lines[0].split("#")[1], letters) == (2, *shape)
    for statement in body:
        value = eval(ast.unparse(statement.value), vars(inspect.getmodule(kind)) | scope)
        scope["x"] = value
        assert tuple(value.shape) == noted(lines[statement.lineno - 1].split("#")[1], letters)
    assert len(body) >= 3


def test_alexnet_computes_what_torchvision_does_with_its_weights() -> None:
    from torchvision.models import alexnet

    theirs = alexnet().eval()
    ours = build("alexnet", PHOTO, 1000).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, *PHOTO)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


@pytest.mark.parametrize(("name", "least"), [("lenet", 12), ("alexnet", 12)])
def test_an_image_too_small_is_refused_with_the_least_size(name: str, least: int) -> None:
    for size in range(1, least):
        with pytest.raises(SpecError, match=f"at least {least}x{least}, not {size}x{size}"):
            build(name, Shape(3, size, size))
    assert build(name, Shape(3, least, least)).eval()(torch.zeros(1, 3, least, least)).shape == (
        1,
        10,
    )


def test_the_large_alexnet_says_its_least_size_too() -> None:
    with pytest.raises(SpecError, match="at least 63x63"):
        build("alexnet", Shape(3, 62, 62), form="large")


@pytest.mark.parametrize("shape", [Shape(1, 28, 28), Shape(3, 33, 47), Shape(4, 64, 64)], ids=str)
@pytest.mark.parametrize("name", models.MODELS.names())
def test_every_network_takes_any_sensible_image(name: str, shape: Shape) -> None:
    logits: Tensor = build(name, shape, 5).eval()(torch.zeros(3, *shape))
    assert logits.shape == (3, 5)


def test_the_modern_lenet_differs_only_where_it_says() -> None:
    model = build("lenet", GREY, activation="relu", pool="max")
    kinds = {type(module) for module in model.modules()}
    assert nn.ReLU in kinds and nn.MaxPool2d in kinds
    assert nn.Sigmoid not in kinds and nn.AvgPool2d not in kinds
    assert parameters(model) == 61_706
