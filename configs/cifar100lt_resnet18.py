"""ReSA on long-tailed CIFAR-100 with a ResNet-18 (Figure 12 of the paper).

CIFAR100-LT keeps int(500 x (1/20)^(i/99)) images of class i: 15,907 images, 500 of the first class
and 25 of the last. Everything else is as for CIFAR-100; the test set is whole. The paper gives
curves and no figures. One GPU.

    python -m resa_jax.main --config=configs/cifar100lt_resnet18.py --workdir=runs/cifar100lt

The figure's other methods train by their names: `:mocov3`, `:intl`, `:vicreg`. The paper does not
give their settings for this set; these are those for CIFAR-100.

A folder is taken as it is unless asked to be thinned out in the same way:

    --config.data.source=folder:cifar100/train --config.data.long_tail=20
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
    config.data.long_tail = 20.0
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)
    return apply_smoke(config) if options.smoke else config
