"""The files next to exported safetensors: config.json for timm, and a model card."""

import io
from typing import Any

from raycnn.config import yaml_file
from raycnn.models.blocks import is_small
from raycnn.shape import Shape
from raycnn.training.main_metric import LABELS, main_metric

# Networks whose state-dict keys are timm's, under timm's name: ours (large stems), torchvision's.
RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
TIMM = {name: name for name in RESNETS} | {
    f"torchvision:{name}": name
    for name in (*RESNETS, "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "densenet121")
}
TIMM_OPTIONS = {"shortcut": "projection", "bias": False}  # options that equal timm's networks


def timm_name(model: dict[str, Any], shape: Shape) -> str | None:
    """Return timm's name of a network whose weights timm can load, else None."""
    name = model["name"]
    same = all(model.get(key, value) == value for key, value in TIMM_OPTIONS.items())
    small = name in RESNETS and is_small(model.get("stem", "auto"), shape)
    return TIMM.get(name) if same and not small else None


def config(description: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json: timm's keys, and under `raycnn` raycnn's metadata."""
    metadata = description["metadata"]
    shape, classes = Shape(*metadata["shape"]), description["classes"]
    model = metadata["spec"]["model"]
    content: dict[str, Any] = {
        "architecture": timm_name(model, shape) or model["name"],
        "num_classes": len(classes),
        "label_names": classes,
    }
    if shape.channels != 3:
        content["model_args"] = {"in_chans": shape.channels}
    content["pretrained_cfg"] = {
        "input_size": list(shape),
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": metadata["mean"],
        "std": metadata["std"],
        "num_classes": len(classes),
    }
    return content | {"raycnn": metadata}


def card(description: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the model card, README.md in Hugging Face's layout, from the run's result."""
    metadata, result = description["metadata"], description["result"]
    spec, test = metadata["spec"], result["test"]
    name, data = spec["name"], spec["data"]["name"]
    timm_model = timm_name(spec["model"], Shape(*metadata["shape"]))
    metric = main_metric(test)
    interval = (
        " (95 % interval {:.2%} to {:.2%})".format(*test["interval95"])
        if "interval95" in test
        else ""
    )
    images = ", ".join(f"{count:,} {split}" for split, count in metadata["images"].items())
    model, version = spec["model"]["name"], metadata["versions"]["raycnn"]
    classes, epoch = len(description["classes"]), description["epoch"]
    chosen = "which was best on held-out images" if metadata["images"].get("val") else "the last"
    augmented = ", with test-time augmentation" if description["tta"] else ""
    return f"""---
{_yaml(_front_matter(name, data, LABELS[metric], test[metric], timm_model))}---

# {name}

{model}, trained by raycnn {version} on {data}, {classes} classes: {images} images.

**Test {LABELS[metric]} {test[metric]:.2%}**{interval}{augmented}, each of
{test["count"]:,} images once, after epoch {epoch}, {chosen}.

## Use

```python
{_usage(timm_model)}
```

Images: {_images(description["preprocessing"])}.{_tta(description["tta"], timm_model)}

## Classes

| class | test images | precision | recall | F1 |
|---|---|---|---|---|
{_class_rows(result["per_class"])}

## Training

```yaml
{_yaml({key: spec[key] for key in ("seed", "data", "model", "optimizer", "schedule", "train")})}```
"""


def _front_matter(
    name: str, data: str, metric: str, value: float, timm_model: str | None
) -> dict[str, Any]:
    """Return the metadata that the Hugging Face hub reads."""
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data, "split": "test"},
        "metrics": [{"type": metric, "value": round(value, 6)}],
    }
    return {
        "library_name": "timm" if timm_model else "raycnn",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "raycnn", *(["timm"] if timm_model else [])],
        "metrics": [metric],
        "model-index": [{"name": name, "results": [result]}],
    }


def _class_rows(per_class: list[dict[str, Any]]) -> str:
    """Return the rows of the table of classes."""
    return "\n".join(
        f"| {_cell(row['class'])} | {row['count']:,} | {row['precision']:.2%} | "
        f"{row['recall']:.2%} | {row['f1']:.2%} |"
        for row in per_class
    )


def _usage(timm_model: str | None) -> str:
    if timm_model:
        return (
            'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
        )
    return 'import raycnn\n\nraycnn.open_network("FOLDER").predict("picture.jpg")'


def _tta(tta: str | None, timm_model: str | None) -> str:
    """Return a sentence on the test-time augmentation of a run, if it has any."""
    if not tta:
        return ""
    apart = ", which timm does not do" if timm_model else ""
    return f" The logits are the mean over the image and its mirror image{apart}."


def _images(preprocessing: dict[str, Any]) -> str:
    height, width = preprocessing["size"]
    fit = {"crop": "scaled until they cover it, the middle kept", "stretch": "stretched"}
    mean, std = ([round(value, 4) for value in preprocessing[key]] for key in ("mean", "std"))
    return (
        f"{preprocessing['mode'] or preprocessing['channels']}, {height} x {width} pixels"
        f" ({fit.get(preprocessing['fit'], 'as they are')}), then normalized by mean {mean} and "
        f"deviation {std} on the scale 0 to 1"
    )


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _yaml(tree: dict[str, Any]) -> str:
    file = io.StringIO()
    yaml_file.dump(tree, file)
    return file.getvalue()
