"""What a summary says of a network is compared with what the network does."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from raycnn import models
from raycnn.analysis.summary import Layer, Summary, summarize
from raycnn.config.schema import Model
from raycnn.models.flops import count_flops
from raycnn.shape import Shape
from tests.support.jobs import ROOT
from tests.support.processes import Call

COLOR, PHOTO = Shape(3, 32, 32), Shape(3, 224, 224)


def on_meta(build: Callable[..., nn.Module], *args: object, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **options)


def summary_of(name: str, shape: Shape, classes: int = 10, **options: object) -> Summary:
    return summarize(
        on_meta(models.build_model, Model(name=name, **options), shape, classes), shape
    )


def named(summary: Summary, name: str) -> Layer:
    return [layer for layer in summary.layers if layer.name == name][-1]


@pytest.mark.parametrize("name", models.MODELS.names())
def test_the_layers_of_every_network_add_up_to_what_torch_counts(name: str) -> None:
    model = on_meta(models.build_model, Model(name=name), PHOTO, 10)
    found = summarize(model, PHOTO)
    flops = count_flops(model, PHOTO)
    assert 2 * sum(layer.multiply_adds for layer in found.layers) == flops
    assert sum(layer.parameters for layer in found.layers) == found.parameters
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.layers[-1].shape == (10,)
    assert all(layer.receptive_field for layer in found.layers), "every layer is followed"


def test_the_multiply_adds_are_the_ones_of_the_papers() -> None:
    """Kernel area * channels in * outputs of each convolution of LeNet, and of its matrices."""
    found = summary_of("lenet", Shape(1, 28, 28))
    convolutions = 25 * 1 * (6 * 28 * 28) + 25 * 6 * (16 * 10 * 10)
    assert found.multiply_adds == convolutions + 400 * 120 + 120 * 84 + 84 * 10
    assert summary_of("alexnet", PHOTO, 1000).multiply_adds == 714_188_480


def test_the_activations_are_what_is_written_and_not_what_is_viewed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5))
    assert summarize(net, Shape(3, 4, 4)).activations == 4 * 4 * 4 + 5


def vgg_like(*stages: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for convolutions in stages:
        layers += [nn.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions)]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("stages", [(1, 1, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)])
def test_the_field_of_a_stack_is_the_closed_formula(stages: tuple[int, ...]) -> None:
    """1 + the sum over layers of (k - 1) times the strides before it: 212 for VGG-16."""
    layers = summarize(on_meta(vgg_like, *stages), PHOTO).layers
    size = 1 + sum(2**depth * (2 * count + 1) for depth, count in enumerate(stages))
    assert layers[-1].receptive_field == (size, size) and layers[-1].stride == (32, 32)


class Branches(nn.Module):
    """Unequal, uneven, dilated, pooled, added, laid side by side, and one off the center."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2)
        self.wide = nn.Sequential(nn.Conv2d(4, 4, (1, 5), padding=(0, 2)), nn.AvgPool2d(3, 1, 1))
        self.far = nn.Conv2d(4, 4, 3, padding=3, dilation=3)
        self.aside = nn.Sequential(nn.ZeroPad2d((3, 0, 0, 1)), nn.Conv2d(4, 4, (2, 4)))
        self.mix = nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.wide(x) + x, self.far(x).chunk(2, 1)[0], self.aside(x)[:, :2]], 1)
        return self.mix(x)


class Squeeze(nn.Module):
    """A mean over everything weighs every position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x * self.weigh(x)


def seen_by_the_center(net: nn.Module, shape: Shape) -> tuple[int, int]:
    """Rows and columns of the pixels that change the output in the middle, by its gradient."""
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    image = torch.rand(1, *shape, requires_grad=True)
    out = net(image)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert image.grad is not None
    changed = image.grad[0].abs().sum(0).nonzero()
    rows, columns = (changed.amax(0) - changed.amin(0) + 1).tolist()
    return rows, columns


@pytest.mark.parametrize(
    "net",
    [
        Branches(),
        nn.Sequential(nn.Conv2d(2, 2, 3, 2, "valid"), nn.Conv2d(2, 2, (3, 5), padding="same")),
        nn.Sequential(Branches(), nn.AvgPool2d(2, 1), nn.Upsample(scale_factor=1)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(9)),
    ],
    ids=["branches", "same", "nested", "adaptive"],
)
def test_the_field_is_what_the_gradient_of_the_center_covers(net: nn.Module) -> None:
    shape = Shape(2, 65, 65)
    field = summarize(net, shape).layers[-1].receptive_field
    assert field == seen_by_the_center(net, shape)


def test_what_a_global_mean_weighs_sees_the_whole_image() -> None:
    net, shape = Squeeze(), Shape(2, 12, 20)
    found = summarize(nn.Sequential(net, nn.Conv2d(4, 1, 1)), shape).layers[-1]
    assert seen_by_the_center(net, shape) == (12, 20)
    assert (
        found.receptive_field
        and found.receptive_field[0] >= 12
        and found.receptive_field[1] >= 20
        and found.stride == (1, 1)
    )


def test_a_flattening_and_an_adaptive_pool_see_the_whole_image() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    for last in ([nn.Flatten(), nn.Linear(192, 2)], [nn.AdaptiveMaxPool2d(1)], [nn.AvgPool2d(8)]):
        layer = summarize(nn.Sequential(conv, *last), Shape(3, 8, 8)).layers[-1]
        assert layer.receptive_field == (10, 10), "8 and the padding on both sides"


def test_the_fields_of_known_networks_are_the_published_ones() -> None:
    """Araujo et al. have AlexNet and VGG-16; in torchvision's GoogLeNet every 5 x 5 is a 3 x 3."""
    from torchvision.models import convnext_tiny, googlenet, resnet18

    theirs = on_meta(googlenet, aux_logits=False, init_weights=False)
    for network, layer, size in (
        (on_meta(models.build_model, Model(name="alexnet"), PHOTO, 9), "features.12", 195),
        (on_meta(models.build_model, Model(name="vgg16"), PHOTO, 9), "features.30", 212),
        (on_meta(resnet18), "layer4.1.relu", 435),
        (theirs, "maxpool4", 27 + 2 * 16 + 16 + 5 * 32 + 16),
        (on_meta(convnext_tiny), "features.1.2.block.5", 4 + 3 * 6 * 4),  # channels last within
    ):
        found = summarize(network, PHOTO)
        assert named(found, layer).receptive_field == (size, size)
        assert found.parameters == sum(row.parameters for row in found.layers)


def test_what_is_not_followed_says_so() -> None:
    first = nn.Conv2d(3, 4, 2, 2)
    for rest in ([nn.Flatten(2), nn.Linear(16, 2)], [nn.ConvTranspose2d(4, 4, 1), nn.ReLU()]):
        layers = summarize(nn.Sequential(first, *rest), Shape(3, 8, 8)).layers
        assert [layer.receptive_field for layer in layers] == [(2, 2), None, None]


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(8), persistent=False)
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.table) * self.scale


def test_what_a_network_does_not_save_is_there_for_its_summary() -> None:
    net = on_meta(lambda: nn.Sequential(Table(), nn.Conv2d(3, 4, 2, 2)))
    assert summarize(net, Shape(3, 8, 8)).layers[-1].shape == (4, 4, 4)
    assert not net[0].scale.requires_grad


def test_a_summary_leaves_no_hooks_behind() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 2, 2))
    first = summarize(net, COLOR)
    assert summarize(net, COLOR) == first and not net[0]._forward_hooks


def test_the_verb_shows_a_network_of_the_catalog(call: Call) -> None:
    ended, out, _ = call("summary", "lenet", "pool=max", "--image", "1x28x28", "--classes", "10")
    rows = [line.split() for line in out.splitlines()]
    assert ended == 0
    assert ["stage2.0", "Conv2d", "16x10x10", "2,416", "240,000", "14", "2"] in rows
    assert ["stage2.2", "MaxPool2d", "16x5x5", "16", "4"] in rows
    assert ["head", "Linear", "10", "850", "840", "32", "-"] in rows
    assert "61,706 parameters, 0.2 MiB" in out and "416,520 multiply-adds" in out


def test_the_verb_takes_images_and_classes_from_a_job(call: Call) -> None:
    quick = str(ROOT / "jobs" / "quickstart.yaml")
    ended, out, _ = call("summary", quick, "model.activation=tanh", "--json")
    found = json.loads(out)
    assert ended == 0 and found["layers"][-1]["shape"] == [10]
    assert found["layers"][0]["shape"][1:] == found["image"][1:]
    assert "Tanh" in {layer["kind"] for layer in found["layers"]}
    ended, _, err = call("summary", quick, "--classes", "3")
    assert ended == 2 and "--classes" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alexnt"], "model.name: unknown model 'alexnt'; did you mean 'alexnet'?"),
        (["alexnet", "form=tiny"], "model.form: must be 'auto', 'small' or 'large', not 'tiny'"),
        (["alexnet", "frm=small"], "model.frm: unknown alexnet option 'frm'; did you mean"),
        (["alexnet", "small"], "'small' is not a change"),
        (["alexnet", "--image", "3x8x8"], "alexnet needs images of at least 12x12, not 8x8"),
        (["alexnet", "--image", "224"], "--image '224' is not CHANNELSxROWSxCOLUMNS"),
        (["alexnet", "--image", "3x0x8"], "--image '3x0x8' is not CHANNELSxROWSxCOLUMNS"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
    ],
)
def test_a_network_that_cannot_be_is_refused(call: Call, words: list[str], said: str) -> None:
    ended, out, err = call("summary", *words)
    assert ended == 2 and said in err and not out


def test_a_network_of_torchvisions_is_summarised_too(call: Call) -> None:
    ended, out, err = call("summary", "torchvision:squeezenet1_1", "--json")
    assert ended == 0 and not err
    assert json.loads(out)["parameters"] == 1_235_496
