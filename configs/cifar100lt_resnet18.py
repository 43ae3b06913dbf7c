"""ReSA on long-tailed CIFAR-100 with a ResNet-18 (Figure 12 of the paper).

CIFAR100-LT keeps int(500 x (1/20)^(i/99)) images of class i: 15,907 images, 500 of the first class
and 25 of the last. Everything else is as for CIFAR-100; the test set is whole. The paper gives
curves and no figures. One GPU.

    python -m resa_jax.main --config=configs/cifar100lt_resnet18.py --workdir=runs/cifar100lt

A folder is taken as it is unless asked to be thinned out in the same way:

    --config.data.source=folder:cifar100/train --config.data.long_tail=20
"""

from ml_collections import ConfigDict

from resa_jax.recipes import apply_smoke, cifar_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """`smoke` is the only variant."""
    options = parse_variant(variant, smoke=False)
    config = cifar_config()
    config.data.source = config.data.test_source = "tfds:cifar100"
    config.data.long_tail = 20.0
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    return apply_smoke(config) if options.smoke else config
