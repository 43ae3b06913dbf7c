"""Pre-training that goes on from given weights, and from none, on a small set of real images.

python -m benchmarks.continued --given=folder:DIR --source=folder:DIR --workdir=DIR \\
    --output=FILE.json

Needs torch and transformers, whose own modules make the given weights and save them as they save
theirs: a ResNet-18, trained by the labels of --given; DINOv2's and DINOv3's ViT-S at their first
values, since published ones are not at hand everywhere. Each is continued with ReSA by the recipe
`own_images:small` on --source, as is a ResNet-18 from nothing. Scores are those of the encodings of
--source at the first step and at the last: 5-NN accuracy in percent (one image in five held out)
and the adjusted Rand index of k-means.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

from absl import flags

from resa_jax.cli import run
from resa_jax.recipes import get_config


_GIVEN = flags.DEFINE_string("given", None, "Labelled images for the ResNet-18.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "Labelled images to go on with.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 40, "Of each ResNet-18's run.", lower_bound=1)
_VIT_EPOCHS = flags.DEFINE_integer("vit_epochs", 4, "Of each ViT's run.", lower_bound=1)

_SIDE = 32
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main(arguments: list[str]) -> None:
    """Makes the given weights, trains from each, and writes the table after each run."""
    del arguments
    workdir = Path(_WORKDIR.value)
    supervised = workdir / "supervised"
    if not supervised.exists():
        _train_with_labels(supervised)
    dinov2, dinov3 = _first_values(workdir)
    continued = {"init_from": str(supervised), "base_lr": 0.05, "optimizer.encoder_start": 2}
    vit = {"optimizer.name": "adamw", "optimizer.layer_decay": 0.75, "base_lr": 5e-4}
    rows = {}
    for name, given, encoder, side, epochs, fields in (
        ("resnet18, from nothing", None, "resnet18", _SIDE, _EPOCHS.value, {}),
        ("resnet18, supervised", supervised, "resnet18", _SIDE, _EPOCHS.value, continued),
        ("DINOv2, first values", dinov2, "dinov2_s14", 28, _VIT_EPOCHS.value, vit),
        ("DINOv3, first values", dinov3, "dinov3_s16", _SIDE, _VIT_EPOCHS.value, vit),
    ):
        if given is not None:
            fields = fields | {"init_from": str(given)}
        folder = workdir / name.replace(", ", "_").replace(" ", "_")
        rows[name] = _row(folder, encoder, side, epochs, fields)
        print(name, json.dumps(rows[name]), flush=True)
        libraries = ("jax", "torch", "transformers", "resa_jax")
        result = {
            "benchmark": "continued",
            "python": platform.python_version(),
            **{library: version(library) for library in libraries},
            "rows": rows,
        }
        Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def _row(workdir, encoder, side, epochs, fields):
    from resa_jax.training.loop import train

    config = get_config(
        "own_images:small",
        epochs=epochs,
        warmup_epochs=min(2, epochs - 1),
        precision="float32",
        **{
            "data.source": _SOURCE.value,
            "encoder.name": encoder,
            "encoder.image_size": side,
            "eval.every_epochs": epochs,
            "checkpoint.every_epochs": epochs,
        },
        **fields,
    )
    train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    seconds = sum(record.get("seconds/step", 0) for record in records)
    scored = [record for record in records if "eval/knn_top1" in record]
    before, after = (
        {"knn": record["eval/knn_top1"], "ari": record["eval/encoding_ari"]}
        for record in (scored[0], scored[-1])
    )
    assert scored[0]["step"] == 0 < scored[-1]["step"]
    return {"epochs": epochs, "minutes": round(seconds / 60, 1), "before": before, "after": after}


def _train_with_labels(folder):
    """Ten epochs of SGD with flips, as a classifier of the class folders of --given."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    files = sorted(Path(_GIVEN.value.removeprefix("folder:")).glob("*/*"))
    names = sorted({file.parent.name for file in files})
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    pixels = [Image.open(file).convert("RGB").resize((_SIDE, _SIDE)) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]

    torch.manual_seed(0)
    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    config = transformers.ResNetConfig(layer_type="basic", num_labels=len(names), **sizes)
    model = transformers.ResNetForImageClassification(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(10):
        for chosen in torch.randperm(len(images)).split(64):
            batch = images[chosen]
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
            loss = model(batch, labels=labels[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    description = {"image_mean": _MEAN, "image_std": _STD, "size": {"shortest_edge": _SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(description))


def _first_values(workdir):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
    folders = workdir / "dinov2", workdir / "dinov3"
    for folder, name, fields in zip(
        folders,
        ("Dinov2", "DINOv3ViT"),
        (
            {"image_size": 28, "patch_size": 14},
            {"image_size": _SIDE, "intermediate_size": 1536, "num_register_tokens": 4},
        ),
        strict=True,
    ):
        config = getattr(transformers, f"{name}Config")(**sizes, **fields)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    return folders


if __name__ == "__main__":
    run(main)
