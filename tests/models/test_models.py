import ast
import inspect
import textwrap

import pytest
import torch
from torch import Tensor, nn

from raycnn import models
from raycnn.config.schema import Model
from raycnn.errors import SpecError
from raycnn.models.alexnet import AlexNet, SmallAlexNet
from raycnn.models.dropout import Dropout
from raycnn.models.googlenet import GoogLeNet
from raycnn.models.lenet import LeNet
from raycnn.models.resnet import ResNet
from raycnn.models.resnet9 import ResNet9
from raycnn.models.vgg import VGG
from raycnn.shape import Shape

GRAY, COLOR, PHOTO = Shape(1, 28, 28), Shape(3, 32, 32), Shape(3, 224, 224)


def build(name: str, shape: Shape, classes: int = 10, **options: object) -> nn.Module:
    return models.build_model(Model(name=name, **options), shape, classes)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "count"),
    [
        ("lenet", GRAY, 10, {}, 61_706),
        ("alexnet", COLOR, 10, {}, 67_004_746),
        ("alexnet", PHOTO, 1000, {}, 61_100_840),
        ("vgg11", PHOTO, 1000, {}, 132_863_336),
        ("vgg13", PHOTO, 1000, {}, 133_047_848),
        ("vgg16", PHOTO, 1000, {}, 138_357_544),
        ("vgg19", PHOTO, 1000, {}, 143_667_240),
        ("resnet9", COLOR, 10, {}, 6_573_120),
        ("resnet18", PHOTO, 1000, {}, 11_689_512),
        ("resnet34", PHOTO, 1000, {}, 21_797_672),
        ("resnet50", PHOTO, 1000, {}, 25_557_032),
        ("resnet101", PHOTO, 1000, {}, 44_549_160),
        ("resnet152", PHOTO, 1000, {}, 60_192_808),
        ("resnet34", Shape(3, 64, 64), 6, {"shortcut": "plain", "bias": True}, 21_294_470),
        ("googlenet", PHOTO, 1000, {"kernel": 3}, 6_624_904),
        ("googlenet", PHOTO, 1000, {}, 7_005_832),
        ("googlenet", Shape(3, 96, 96), 10, {"bias": True}, 5_998_362),
    ],
)
def test_a_network_has_the_published_number_of_parameters(
    name: str, shape: Shape, classes: int, options: dict[str, object], count: int
) -> None:
    with torch.device("meta"):
        assert parameters(build(name, shape, classes, **options)) == count


def noted(comment: str, names: dict[str, int]) -> tuple[int, ...]:
    words = comment.strip(" #()").replace(" ", "").strip("()").split(",")
    return tuple(names[word] if word in names else int(word) for word in words if word)


@pytest.mark.parametrize(
    ("kind", "name", "shape", "options"),
    [
        (LeNet, "lenet", GRAY, {}),
        (SmallAlexNet, "alexnet", COLOR, {"form": "small"}),
        (AlexNet, "alexnet", PHOTO, {"form": "large"}),
        (VGG, "vgg11", PHOTO, {}),
        (GoogLeNet, "googlenet", PHOTO, {}),
        (ResNet, "resnet18", PHOTO, {}),
        (ResNet9, "resnet9", COLOR, {}),
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


@pytest.mark.parametrize(
    ("name", "options", "theirs", "extra"),
    [
        ("alexnet", {}, "alexnet", {}),
        ("vgg11", {}, "vgg11", {}),
        ("googlenet", {"kernel": 3}, "googlenet", {"aux_logits": False, "init_weights": True}),
        ("resnet18", {}, "resnet18", {}),
        ("resnet50", {}, "resnet50", {}),
    ],
)
def test_a_network_computes_what_torchvisions_does_with_its_weights(
    name: str, options: dict[str, object], theirs: str, extra: dict[str, bool]
) -> None:
    from torchvision.models import get_model

    peer = get_model(theirs, **extra).eval()
    own = build(name, PHOTO, 1000, **options).eval()
    own.load_state_dict(peer.state_dict())
    for side in (224, 197):
        images = torch.randn(1, 3, side, side)
        assert torch.allclose(own(images), peer(images), atol=1e-5)


@pytest.mark.parametrize("name", ["vgg13", "vgg16", "vgg19", "resnet34", "resnet101", "resnet152"])
def test_state_dict_keys_and_shapes_are_torchvisions(name: str) -> None:
    from torchvision.models import get_model

    batch_norm = {"batch_norm": True} if name == "vgg16" else {}
    with torch.device("meta"):
        own = build(name, PHOTO, 1000, **batch_norm).state_dict()
        peer = get_model("vgg16_bn" if batch_norm else name).state_dict()
    assert {key: t.shape for key, t in own.items()} == {key: t.shape for key, t in peer.items()}


def test_any_classifier_of_torchvision_is_built_for_any_channels_and_classes() -> None:
    gray = Shape(1, 64, 64)
    model = build("torchvision:shufflenet_v2_x0_5", gray, 7)
    assert model.training and model(torch.rand(2, *gray)).shape == (2, 7)
    dropouts = {type(m) for m in build("torchvision:vgg11", PHOTO, 5).modules()}
    assert Dropout in dropouts and nn.Dropout not in dropouts


def test_a_network_whose_builder_reads_values_can_be_checked() -> None:
    with torch.device("meta"):
        assert parameters(build("torchvision:regnet_y_400mf", PHOTO, 3)) > 1e6


def test_torchvisions_googlenet_gives_logits_and_nothing_else() -> None:
    assert build("torchvision:googlenet", Shape(3, 96, 96), 4)(torch.rand(2, 3, 96, 96)).shape == (
        2,
        4,
    )


def test_one_lone_value_does_not_break_torchvisions_batch_norm() -> None:
    assert build("torchvision:resnet18", COLOR).train()(torch.rand(1, *COLOR)).isfinite().all()


def test_a_torchvision_name_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="'shufflenet_v2_x0_5'"):
        build("torchvision:shufflenet_x0_5", PHOTO)


def test_images_that_a_torchvision_network_cannot_take_are_refused() -> None:
    with (
        pytest.raises(SpecError, match="vit_b_32 .*3x32x32"),
        torch.device("meta"),
    ):
        build("torchvision:vit_b_32", COLOR)


@pytest.mark.parametrize(
    ("name", "least"), [("lenet", 12), ("alexnet", 12), ("resnet9", 8), ("vgg11", 32)]
)
def test_an_image_too_small_is_refused_with_the_least_size(name: str, least: int) -> None:
    for size in (1, least - 1):
        with pytest.raises(SpecError, match=f"{least}x{least}, .*{size}x{size}"):
            with torch.device("meta"):
                build(name, Shape(3, size, size))
    assert build(name, Shape(3, least, least)).eval()(torch.zeros(1, 3, least, least)).shape == (
        1,
        10,
    )


def test_the_large_forms_say_their_least_size_too() -> None:
    with pytest.raises(SpecError, match="at least 63x63"):
        build("alexnet", Shape(3, 62, 62), form="large")
    with pytest.raises(SpecError, match="at least 15x15"):
        build("googlenet", Shape(3, 14, 14), stem="large")


def test_small_images_keep_their_size_through_the_stem() -> None:
    for name in ("resnet18", "googlenet"):
        features = build(name, COLOR)
        assert features.get_submodule("maxpool1" if name == "googlenet" else "maxpool")(
            features.conv1(torch.zeros(1, *COLOR))
        ).shape[2:] == (32, 32)


@pytest.mark.parametrize("name", ["googlenet", "vgg11"])
def test_a_network_of_half_the_channels_has_half_in_every_layer(name: str) -> None:
    whole, half = (build(name, COLOR, channels=n) for n in (64, 32))
    for layer, weight in whole.named_parameters():
        sides = [n if n in (COLOR.channels, 10) else n // 2 for n in weight.shape[:2]]
        assert half.get_parameter(layer).shape == (*sides, *weight.shape[2:]), layer
    assert half(torch.zeros(2, *COLOR)).shape == (2, 10)


def test_the_medium_stem_of_a_googlenet_halves_an_image() -> None:
    half = build("googlenet", COLOR, stem="medium", channels=32)
    seen: list[torch.Size] = []
    half.inception3a.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    half(torch.zeros(2, *COLOR))
    assert seen == [(2, 96, 16, 16)]


def test_one_lone_value_does_not_break_batch_norm() -> None:
    """A last batch of one image, of which one pixel is left: torch's own raises."""
    model = build("resnet18", COLOR, stem="large").train()
    logits = model(torch.rand(1, *COLOR))
    assert logits.isfinite().all()


def test_frozen_parts_are_not_trained_and_keep_their_statistics() -> None:
    model = models.build_model(
        Model(name="resnet18", freeze=["conv1", "bn1", "layer1.0"]), COLOR, 5
    )
    models.begin_training(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("conv1", "bn1", "layer1.0."))
    }
    assert not model.bn1.training and model.layer2[0].bn1.training
    with pytest.raises(SpecError, match="did you mean 'layer1'"):
        models.build_model(Model(name="resnet18", freeze=["layer_1"]), COLOR, 5)
    with pytest.raises(SpecError, match="nothing is left to train"):
        models.build_model(
            Model(name="lenet", freeze=["stage1", "stage2", "hidden", "head"]), GRAY, 5
        )


SMALLEST = [
    "alexnet",
    "googlenet",
    "lenet",
    "resnet9",
    "resnet18",
    "resnet50",
    "vgg11",
]  # of each kind


@pytest.mark.parametrize("shape", [Shape(1, 32, 32), Shape(3, 33, 47), Shape(4, 64, 64)], ids=str)
@pytest.mark.parametrize("name", SMALLEST)
def test_every_network_takes_any_sensible_image(name: str, shape: Shape) -> None:
    logits: Tensor = build(name, shape, 5).eval()(torch.zeros(3, *shape))
    assert logits.shape == (3, 5)


def test_the_modern_lenet_differs_only_where_it_says() -> None:
    model = build("lenet", GRAY, activation="relu", pool="max")
    kinds = {type(module) for module in model.modules()}
    assert nn.ReLU in kinds and nn.MaxPool2d in kinds
    assert nn.Sigmoid not in kinds and nn.AvgPool2d not in kinds
    assert parameters(model) == 61_706
