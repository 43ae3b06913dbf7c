"""ReSA on CIFAR-10 with a ResNet-18 (Tables 1 and 8 of the paper).

1,000 epochs, batch 256, SGD with lr 0.3 and weight decay 1e-4, no predictor, float32. The paper
reports 93.5 % linear and 93.0 % 5-NN accuracy. One GPU.

    python -m resa_jax.main --config=configs/cifar10_resnet18.py --workdir=runs/cifar10

The methods that Table 1 compares with train by their names, each with the settings of its source
(`resa_jax/baselines.py`):

    python -m resa_jax.main --config=configs/cifar10_resnet18.py:swav --workdir=runs/swav

From a folder of class folders instead of TFDS:

    --config.data.source=folder:cifar10/train --config.data.test_source=folder:cifar10/test
"""

from ml_collections import ConfigDict

from resa_jax.baselines import BASELINES, cifar_baseline
from resa_jax.recipes import apply_smoke, cifar_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a method of Table 1, `smoke`."""
    options = parse_variant(variant, BASELINES, smoke=False)
    resa = options.method == "resa"
    config = cifar_config() if resa else cifar_baseline(options.method)
    config.data.source = config.data.test_source = "tfds:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    whitening = options.method in ("wmse", "cw_rgp")
    config.data.std = (0.2023, 0.1994, 0.2010) if whitening else (0.2470, 0.2435, 0.2616)
    return apply_smoke(config) if options.smoke else config
