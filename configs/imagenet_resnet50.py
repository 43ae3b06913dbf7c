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

From the usual folder layout instead of TFDS:

    --config.data.source=folder:imagenet/train --config.data.test_source=folder:imagenet/val
"""

from ml_collections import ConfigDict

from resa_jax.recipes import apply_smoke, default_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `bs1024`, `epochs=N`, `smoke`."""
    options = parse_variant(variant, smoke=False, bs1024=False, epochs=100)
    config = default_config()
    config.epochs = options.epochs
    config.batch_size = 1024 if options.bs1024 else 256
    config.base_lr = 0.4 if options.epochs == 800 else 0.5
    config.warmup_epochs = 10 if options.bs1024 else 2
    config.weight_decay = 1e-5
    config.method.predictor = True
    config.precision = "bfloat16"
    config.encoder.name = "resnet50"
    config.data.source = "tfds:imagenet2012"
    config.data.test_source = "tfds:imagenet2012@validation"
    config.data.resize = 256
    config.eval.every_epochs = 10
    return apply_smoke(config) if options.smoke else config
