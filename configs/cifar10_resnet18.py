"""ReSA on CIFAR-10 with a ResNet-18 (Tables 1 and 8 of the paper).

1,000 epochs, batch 256, SGD with lr 0.3 and weight decay 1e-4, no predictor, float32. The paper
reports 93.5 % linear and 93.0 % 5-NN accuracy. One GPU.

    python -m resa_jax.main --config=configs/cifar10_resnet18.py --workdir=runs/cifar10

SimCLR in the same trainer, with solo-learn's settings (LARS, lr 0.4, 10 epochs of warm-up, cosine
to 0, both views strong):

    python -m resa_jax.main --config=configs/cifar10_resnet18.py:simclr --workdir=runs/simclr

From a folder of class folders instead of TFDS:

    --config.data.source=folder:cifar10/train --config.data.test_source=folder:cifar10/test
"""

from ml_collections import ConfigDict

from resa_jax.recipes import apply_smoke, cifar_config, parse_variant, standard_view


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `simclr`, `smoke`."""
    options = parse_variant(variant, smoke=False, simclr=False)
    config = simclr_config() if options.simclr else cifar_config()
    config.data.source = config.data.test_source = "tfds:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    return apply_smoke(config) if options.smoke else config


def simclr_config() -> ConfigDict:
    """solo-learn's settings (scripts/pretrain/cifar/simclr.yaml)."""
    config = cifar_config("simclr")
    config.optimizer.name = "lars"
    config.base_lr, config.final_lr, config.warmup_epochs = 0.4, 0.0, 10
    strong = standard_view(
        crop_scale=(0.08, 1.0),
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        solarize_probability=0.0,
    )
    config.views = [strong, strong.copy_and_resolve_references()]
    return config
