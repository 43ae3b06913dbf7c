"""ReSA on scikit-learn's handwritten digits: a complete run in two minutes on two CPU cores.

1,797 grey images of 8 x 8 pixels, shipped inside scikit-learn, so nothing is downloaded. The run ends
with a table: how well pixels, the untrained encoder and the trained one cluster by digit.

    python -m resa_jax.main --config=configs/digits.py --workdir=runs/digits

Not in the paper: the encoder is a narrow ResNet-18, and the views neither flip nor recolour, since
that would turn one digit into another.
"""

from ml_collections import ConfigDict

from resa_jax.config import apply_smoke, default_config, parse_variant, standard_view, weak_view


def get_config(variant: str | None = None) -> ConfigDict:
    """`smoke` is the only variant."""
    options = parse_variant(variant, smoke=False)
    config = default_config()
    config.epochs = 150
    config.batch_size = 256
    config.base_lr = 0.3
    config.weight_decay = 1e-4
    config.encoder.update({"name": "resnet18_small", "image_size": 8, "width": 16})
    config.projector.update({"hidden_size": 256, "output_size": 64})
    still = {"flip_probability": 0.0, "crop_scale": (0.5, 1.0)}
    config.views = [
        weak_view(**still),
        standard_view(
            **still,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            blur_probability=0.0,
            solarize_probability=0.0,
        ),
    ]
    config.data.source = "digits"
    config.data.mean = config.data.std = "auto"
    config.eval.baselines = True
    config.checkpoint.every_epochs = 50
    return apply_smoke(config) if options.smoke else config
