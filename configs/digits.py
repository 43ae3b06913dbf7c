"""ReSA on scikit-learn's handwritten digits: a whole run in two minutes on two CPU cores.

1,797 gray images of 8 x 8 pixels, shipped inside scikit-learn, so nothing is downloaded. The run
ends with a table: how well pixels, the untrained encoder and the trained one cluster by digit.

    python -m resa_jax.main --config=configs/digits.py --workdir=runs/digits

Other methods train on the same views by their names, as `digits.py:simclr`.

Not in the paper: the encoder is a narrow ResNet-18, the optimiser AdamW, and the views neither flip
nor recolour, since that would turn one digit into another.
"""

from ml_collections import ConfigDict

from resa_jax.baselines import BASELINES
from resa_jax.recipes import apply_smoke, default_config, parse_variant, weak_view


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a method's name, `long` (700 epochs), `smoke`."""
    options = parse_variant(variant, (*BASELINES, "mec"), smoke=False, long=False)
    config = default_config(options.method)
    config.epochs = 700 if options.long else 110
    config.batch_size = 256
    config.optimizer.name = "adamw"
    # By a search among 1e-3, 3e-3 and 1e-2 (benchmarks.digits_rates); at SimSiam's best of it,
    # 1e-2, embeddings keep two dimensions with some seeds.
    config.base_lr = {
        **dict.fromkeys(("simclr", "byol", "vicreg", "intl", "mec"), 1e-2),
        "barlow_twins": 1e-3,
    }.get(options.method, 3e-3)
    config.weight_decay = 0.01
    config.ema_momentum = 0.98  # a run of 770 steps has no time for 0.996
    config.encoder.update({"name": "resnet18_small", "image_size": 8, "width": 8})
    config.method.update({"hidden_size": 256, "output_size": 64})
    sizes = {"predictor_size": 128, "num_prototypes": 128, "queue_size": 0}
    if options.method == "cw_rgp":  # groups of twice as many channels as a slice has images
        sizes = {"output_size": 128, "slice_size": 32, "groups": 2}
    config.method.update({name: n for name, n in sizes.items() if name in config.method})
    if options.method == "byol":  # far wider than embeddings, as BYOL's; else nearly one dimension
        config.method.predictor_size = 512
    if options.method == "barlow_twins":  # embeddings of 64 numbers, not of 2,048
        config.method.off_diagonal_weight = 0.1
    if options.method == "dino":  # an encoder as narrow gives nearly one embedding for all images
        config.method.update({"batch_norm": True, "teacher_temperature": 0.04})
    config.views = [
        weak_view(flip_probability=0.0, crop_scale=(0.8, 1.0)),
        weak_view(
            flip_probability=0.0,
            crop_scale=(0.6, 1.0),
            interpolation="bicubic",
            blur_probability=0.5,
            blur_sigma=(0.1, 0.7),
        ),
    ]
    config.data.source = "digits"
    config.data.mean = config.data.std = "auto"
    config.eval.baselines = True
    config.checkpoint.every_epochs = 50
    return apply_smoke(config) if options.smoke else config
