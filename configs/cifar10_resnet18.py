"""ReSA on CIFAR-10 with a ResNet-18 (Tables 1 and 8 of the paper).

1,000 epochs, batch 256, SGD with lr 0.3 and weight decay 1e-4, no predictor, float32. The paper
reports 93.5 % linear and 93.0 % 5-NN accuracy. One GPU.

    python -m resa_jax.main --config=configs/cifar10_resnet18.py --workdir=runs/cifar10

From a folder of class folders instead of TFDS:

    --config.data.source=folder:cifar10/train --config.data.test_source=folder:cifar10/test
"""

from ml_collections import ConfigDict

from resa_jax.recipes import apply_smoke, cifar_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """`smoke` is the only variant."""
    options = parse_variant(variant, smoke=False)
    config = cifar_config()
    config.data.source = config.data.test_source = "tfds:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    return apply_smoke(config) if options.smoke else config
