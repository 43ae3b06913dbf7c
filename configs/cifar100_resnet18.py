"""ReSA on CIFAR-100 with a ResNet-18 (Tables 1 and 8 of the paper).

1,000 epochs, batch 256, SGD with lr 0.3 and weight decay 1e-4, no predictor, float32. The paper
reports 72.21 % linear and 66.83 % 5-NN accuracy. One GPU.

    python -m resa_jax.main --config=configs/cifar100_resnet18.py --workdir=runs/cifar100

The methods that Table 1 compares with train by their names, as in `cifar10_resnet18.py`:

    python -m resa_jax.main --config=configs/cifar100_resnet18.py:simclr --workdir=runs/simclr

From a folder of class folders instead of TFDS:

    --config.data.source=folder:cifar100/train --config.data.test_source=folder:cifar100/test
"""

from ml_collections import ConfigDict

from resa_jax.baselines import BASELINES, cifar_baseline
from resa_jax.recipes import apply_smoke, cifar_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a method of Table 1, `smoke`."""
    options = parse_variant(variant, BASELINES, smoke=False)
    resa = options.method == "resa"
    config = cifar_config() if resa else cifar_baseline(options.method, num_classes=100)
    config.data.source = config.data.test_source = "tfds:cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    return apply_smoke(config) if options.smoke else config
