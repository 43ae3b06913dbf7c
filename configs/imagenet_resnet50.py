"""ReSA on ImageNet with a ResNet-50 (Tables 2 and 8 of the paper).

SGD with lr 0.5 (0.4 for 800 epochs) and weight decay 1e-5, with a predictor, bfloat16. Linear
accuracy that the paper reports, in percent:

    variant                 100 epochs   200 epochs   800 epochs   warm-up
    (batch 256)                   71.9         73.4            -   2 epochs
    bs1024                        71.3         73.8         75.2   10 epochs

Batch 256 fits one GPU of 80 GB, batch 1,024 eight GPUs or a TPU v3-8 slice and larger.

    python -m resa_jax.main --config=configs/imagenet_resnet50.py --workdir=runs/r50
    python -m resa_jax.main --config=configs/imagenet_resnet50.py:bs1024,epochs=800 \\
      --workdir=runs/r50

The methods that Table 2 compares with train by their names, by their authors' settings
(`resa_jax/baselines.py` says where they fall short of them). Linear accuracy that the paper reports
after 100, 200 and 800 epochs, in percent, none of it measured here:

    simclr, batch 4,096         66.5  68.3  70.4     barlow_twins, batch 2,048   67.7  70.2  73.2
    swav, batch 4,096           66.5  69.1  71.8     vicreg, batch 2,048         68.6  70.8  73.1
    mocov3, batch 4,096         68.9     -  73.8     simsiam, batch 256          68.1  70.0  71.3
    byol, batch 4,096           66.5  70.6  74.3     mec, batch 1,024            70.6  71.9  74.0
    intl, batch 256             69.5  71.1  73.1

    python -m resa_jax.main --config=configs/imagenet_resnet50.py:mocov3 --workdir=runs/r50_mocov3

From the usual folder layout instead of TFDS:

    --config.data.source=folder:imagenet/train --config.data.test_source=folder:imagenet/val
"""

from ml_collections import ConfigDict

from resa_jax.baselines import IMAGENET_BASELINES, imagenet_baseline
from resa_jax.recipes import apply_smoke, default_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a method of Table 2, `bs1024`, `epochs=N`, `smoke`."""
    options = parse_variant(variant, IMAGENET_BASELINES, smoke=False, bs1024=False, epochs=100)
    if options.method == "resa":
        config = default_config()
        config.epochs = options.epochs
        config.batch_size = 1024 if options.bs1024 else 256
        config.base_lr = 0.4 if options.epochs == 800 else 0.5
        config.warmup_epochs = 10 if options.bs1024 else 2
        config.weight_decay = 1e-5
        config.method.predictor = True
    else:
        config = imagenet_baseline(options.method, options.epochs)
        if options.bs1024:
            config.final_lr *= 1024 / config.batch_size
            config.batch_size = 1024
    config.precision = "bfloat16"
    config.encoder.name = "resnet50"
    config.data.source = "tfds:imagenet2012"
    config.data.test_source = "tfds:imagenet2012@validation"
    config.data.resize = 256
    config.eval.every_epochs = 10
    return apply_smoke(config) if options.smoke else config
