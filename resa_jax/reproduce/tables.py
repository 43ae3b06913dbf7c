"""The paper's tables: cells of a run, what is measured of it, and the paper's number."""

from dataclasses import dataclass, field

from resa_jax.reproduce import paper
from resa_jax.reproduce.runs import STRONG_DIGITS, WEAK, Measure, Run, Scale


TITLES = {
    "simclr": "SimCLR",
    "byol": "BYOL",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "mocov3": "MoCo v3",
    "wmse": "W-MSE",
    "dino": "DINO",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "cw_rgp": "CW-RGP",
    "intl": "INTL",
    "resa": "ReSA",
}
# A ViT of 16 tokens for digits of 8 x 8 pixels.
_SMALL_VIT = {
    "encoder.name": "vit_s16",
    "encoder.patch_size": 2,
    "encoder.width": 64,
    "encoder.depth": 4,
}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
      run, measure: where it comes from; None: it is not made here.
      paper: the paper's number, None where it gives none.
    """

    row: str
    column: str
    run: Run | None
    measure: Measure | None
    paper: float | None


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
      notes: sentences below it.
      text: lines instead of cells, of a table of settings or of commands.
    """

    title: str
    cells: list[Cell] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


def table1(scale: Scale) -> Table:
    """Twelve methods on three data sets."""
    sets = scale.sets("cifar10", "cifar100", "imagenet100")
    epochs = {"cifar10": 1000, "cifar100": 1000, "imagenet100": None}
    cells = []
    for method, numbers in scale.some(paper.TABLE_1.items()):
        for number, name in enumerate(sets):
            run = scale.run(name, method, epochs=epochs[name])
            cells += _linear_and_knn(TITLES[method], run, numbers[2 * number : 2 * number + 2])
    return Table("Linear and k-NN accuracy of twelve methods", cells)


def table2(scale: Scale) -> Table:
    """ImageNet by batch size and epochs."""
    cells = _paper_only(paper.TABLE_2, ("100 epochs", "200 epochs", "800 epochs"))
    for batch, numbers in paper.TABLE_2_RESA.items():
        for epochs, number in zip((100, 200, 800), numbers, strict=True):
            if number is None:
                continue
            words = ("bs1024",) if batch == 1024 else ()
            if epochs != 100:  # the recipe's own, as in Table 11
                words = (*words, f"epochs={epochs}")
            small = {"batch_size": batch // 4, "epochs": int(epochs * 0.275)}
            run = scale.run("imagenet", words=words, small=small)
            linear = run.images.linear
            cells.append(Cell(f"ReSA, batch {batch}", f"{epochs} epochs", run, linear, number))
    note = "At a small scale batches are a quarter as large, and 100 epochs are 27."
    return Table("Linear accuracy of a ResNet-50 on ImageNet", cells, (note,))


def table3(scale: Scale) -> Table:
    """A ViT-S/16 on ImageNet; the paper took the others' numbers from their authors."""
    cells = []
    for method, numbers in scale.some(paper.TABLE_3.items()):
        run = None
        if method == "resa" or not scale.is_paper:
            run = scale.run("imagenet_vits", method, small=_SMALL_VIT)
        cells += _linear_and_knn(TITLES[method], run, numbers)
    return Table("Accuracy of a ViT-S/16 on ImageNet", cells)


def table4(scale: Scale) -> Table:
    """Memory and time of four methods, of the runs' own records."""
    timed = {"steps": 400}
    cells = []
    for method, numbers in scale.some(paper.TABLE_4.items()):
        if method == "dino" and scale.is_paper:  # which the recipe of Table 2 does not have
            fields = timed | {"encoder.name": "resnet50"}
            resnet = scale.run("imagenet_vits", method, fields=fields)
        else:
            resnet = scale.run("imagenet", method, words=("bs1024",), fields=timed)
        vit = scale.run("imagenet_vits", method, fields=timed, small=_SMALL_VIT)
        runs = {"ResNet-50": resnet, "ViT-S": vit}
        for number, (title, run) in enumerate(runs.items()):
            for kind, (column, score) in enumerate(
                (("GB a device", "memory_gib"), ("hours an epoch", "hours_per_epoch"))
            ):
                measure, theirs = Measure(None, score=score), numbers[2 * number + kind]
                cells.append(Cell(TITLES[method], f"{title}, {column}", run, measure, theirs))
    note = (
        "The paper's are of eight A100 of 40 GB with 32 workers; ours are of the machine that ran "
        "them, memory by the compiler's plan of the step, time by the last of 400 steps."
    )
    if not scale.is_paper:
        note = (
            "A ResNet-18 of width 8 and a ViT of four blocks on one CPU core, batches of 256; "
            "memory by the compiler's plan of the step."
        )
    return Table("Memory and time", cells, (note,))


def table5(scale: Scale) -> Table:
    """COCO, which detectron2 trains."""
    columns = ("box AP50", "box AP", "box AP75", "mask AP50", "mask AP", "mask AP75")
    cells = _paper_only(paper.TABLE_5, columns)
    run = Scale("paper").run("imagenet", words=("epochs=200",))  # the commands alone, at any scale
    text = (
        "detectron2 trains the detectors: MoCo's recipe (facebookresearch/moco, detection/), Mask",
        "R-CNN with the 1x schedule, from the encoder in detectron2's layout:",
        "",
        f"    python -m resa_jax.convert --input=RUNS/{run.name} --output=resa.pkl",
        "    python train_net.py --config-file configs/coco_R_50_C4_2x_moco.yaml --num-gpus 8 \\",
        "      MODEL.WEIGHTS resa.pkl SOLVER.STEPS '(60000,80000)' SOLVER.MAX_ITER 90000",
    )
    return Table("Detection and segmentation on COCO", cells, text=text)


def table6(scale: Scale) -> Table:
    """Transfer to fine-grained data sets by neighbours."""
    sources = {  # to learn from and to classify: the official halves
        "ImageNet-1K": ("tfds:imagenet2012", "tfds:imagenet2012@validation"),
        "CUB-200-2011": ("tfds:caltech_birds2011", "tfds:caltech_birds2011"),
        "Pets-37": ("tfds:oxford_iiit_pet", "tfds:oxford_iiit_pet"),
        "Food-101": ("tfds:food101", "tfds:food101@validation"),
        "Flowers-102": ("tfds:oxford_flowers102", "tfds:oxford_flowers102"),
    }
    cells = []
    for row, numbers in paper.TABLE_6.items():
        for number, (title, halves) in enumerate(sources.items()):
            if number and not scale.is_paper:
                continue
            run = scale.run("imagenet", words=("bs1024", "epochs=800")) if row == "ReSA" else None
            for k, value in zip((5, 10, 20), numbers[3 * number : 3 * number + 3], strict=True):
                measure = Measure("knn-weighted", f"k{k}", sources=halves if number else None)
                cells.append(Cell(row, f"{title}, k = {k}", run, measure if run else None, value))
    note = "The others' weights are their authors'; `resa_jax.evaluate --encoder=FILE` scores them."
    return Table("k-NN accuracy on fine-grained data sets", cells, (note,))


def table7(scale: Scale) -> Table:
    """CIFAR-100's superclasses."""
    cells = []
    for method, numbers in paper.TABLE_7.items():
        run = scale.run("cifar100", method, epochs=1000) if scale.is_paper else None
        for column, row, number in zip(("linear", "k-NN"), ("linear", "k5"), numbers, strict=True):
            measure = Measure("coarse", row) if run else None
            cells.append(Cell(TITLES[method], f"coarse {column}", run, measure, number))
    note = "Digits have no superclasses: made at the scale of the paper alone."
    return Table("Accuracy by CIFAR-100's 20 superclasses", cells, (note,))


def table8(scale: Scale) -> Table:
    """Settings of pre-training, read from the recipes."""
    from resa_jax.recipes import get_config

    cells = []
    for name, numbers in paper.TABLE_8.items():
        config = get_config(name)
        ours = (
            config.optimizer.name,
            config.batch_size,
            config.base_lr,
            config.weight_decay,
            config.warmup_epochs,
        )
        cells.append((name, ours, numbers))
    heads = ("recipe", "optimiser", "batch size", "base lr", "weight decay", "warm-up epochs")
    text = [_line(heads), "|---" * len(heads) + "|"]
    for name, ours, numbers in cells:
        pairs = (f"{a} ({b})" for a, b in zip(ours, numbers, strict=True))
        text.append(_line((name, *pairs)))
    return Table("Settings of pre-training, and the paper's in brackets", text=tuple(text))


def table9(scale: Scale) -> Table:
    """Learning rates of linear evaluation, as the encoders have them."""
    from resa_jax.models.spec import EncoderSpec

    text = [_line(("encoder", "batch of pre-training", "lr", "paper")), "|---" * 4 + "|"]
    for (name, batch), rate in paper.TABLE_9.items():
        ours, _ = EncoderSpec(name, 224).create().linear_settings(batch)
        text.append(_line((name, str(batch), f"{ours:g}", f"{rate:g}")))
    return Table("Learning rates of linear evaluation", text=tuple(text))


def table10(scale: Scale) -> Table:
    """Fine-tuning with few labels."""
    run = scale.run("imagenet", words=("bs1024", "epochs=800"))
    columns = ("top-1, 1 %", "top-1, 10 %", "top-5, 1 %", "top-5, 10 %")
    cells = []
    for row, numbers in paper.TABLE_10.items():
        for number, (column, value) in enumerate(zip(columns, numbers, strict=True)):
            share = (1, 10)[number % 2]
            measure = Measure(
                f"finetune-{share}",
                score=("best top1", "best top5")[number // 2],
                options=(f"--list_file={share}percent.txt",) if scale.is_paper else (),
            )
            own = run if row == "ReSA" else None
            cells.append(Cell(row, column, own, measure if own else None, value))
    note = "1percent.txt and 10percent.txt are SimCLR's lists of ImageNet's images."
    if not scale.is_paper:
        note = "Of each class 1 or 10 % are drawn, one image at least; views are as for ImageNet."
    return Table("Fine-tuning with 1 % and 10 % of the labels", cells, (note,))


def table11(scale: Scale) -> Table:
    """Ablations of the architecture and the temperature."""
    cells = []
    for (momentum, predictor), number in scale.some(paper.TABLE_11.items()):
        row = f"{'with' if momentum else 'no'} momentum, {'with' if predictor else 'no'} predictor"
        run = scale.run(
            "imagenet",
            method__momentum_network=momentum,
            method__predictor=predictor,
        )
        cells.append(Cell(row, "linear", run, run.images.linear, number))
    for batch, numbers in paper.TABLE_11_TEMPERATURE.items():
        for temperature, number in scale.some(numbers.items()):
            if batch == 1024 and not scale.is_paper:
                continue
            words = ("bs1024",) if batch == 1024 else ()
            run = scale.run("imagenet", words=words, method__temperature=temperature)
            row = f"batch {batch}, temperature {temperature}"
            cells.append(Cell(row, "linear", run, run.images.linear, number))
    return Table("Ablations of momentum, predictor and temperature", cells)


def table12(scale: Scale) -> Table:
    """Weak augmentation of one view in other methods."""
    cells = []
    for (method, weak), numbers in scale.some(paper.TABLE_12.items()):
        for number, name in enumerate(scale.sets("cifar10", "cifar100")):
            # The first view of the recipe for digits is the weak one.
            small = {} if weak else STRONG_DIGITS
            run = scale.run(name, method, fields=WEAK if weak else {}, small=small)
            row = f"{TITLES[method]}{', one view weak' if weak else ''}"
            cells += _linear_and_knn(row, run, numbers[2 * number : 2 * number + 2])
    return Table("Weak augmentation of one view", cells)


def _paper_only(rows: dict, columns: tuple[str, ...]) -> list[Cell]:
    return [
        Cell(row, column, None, None, number)
        for row, numbers in rows.items()
        for column, number in zip(columns, numbers, strict=True)
    ]


def _linear_and_knn(row, run, numbers) -> list[Cell]:
    if run is None:
        return _paper_only({row: numbers}, ("linear", "k-NN"))
    title = f"{run.images.title} " if run.images.recipe != "imagenet_vits" else ""
    measures = (("linear", run.images.linear), ("k-NN", run.images.neighbours))
    return [
        Cell(row, f"{title}{column}", run, measure, number)
        for (column, measure), number in zip(measures, numbers, strict=True)
    ]


def _line(values) -> str:
    return f"| {' | '.join(map(str, values))} |"
