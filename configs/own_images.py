"""ReSA on a folder of your own images, hundreds to hundreds of thousands, labelled or not.

    python -m resa_jax.main --config=own_images --workdir=runs/mine \\
      --config.data.source=folder:photographs

A ResNet-18 at 224 pixels, batch 256, 200 epochs, SGD with lr 0.5, bfloat16; the channels' mean and
standard deviation are measured on the images. Not in the paper. Variants:

- `small`, for up to some thousand images: batch 64, 400 epochs, and a moving average that follows
  faster, since there are few steps.
- `gray`: images of one channel, without colour transforms; `gray16` also keeps their 16 bits
  (of 12 bits: `--config.data.gray_max=4095`).
- `smoke`: a few steps on digits.

Any encoder will do, also with weights to start from: docs/weights.md.
"""

from ml_collections import ConfigDict

from resa_jax.recipes import apply_smoke, default_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `small`, `gray`, `gray16`, `smoke`."""
    options = parse_variant(variant, smoke=False, small=False, gray=False, gray16=False)
    config = default_config()
    config.epochs = 400 if options.small else 200
    config.batch_size = 64 if options.small else 256
    config.base_lr = 0.5
    config.warmup_epochs = 10
    config.weight_decay = 1e-4
    config.ema_momentum = 0.99 if options.small else 0.996
    config.precision = "bfloat16"
    config.encoder.name = "resnet18"
    config.data.source = "folder:images"
    config.data.mean = config.data.std = "auto"
    config.eval.every_epochs = 20
    config.eval.baselines = True
    config.checkpoint.every_epochs = 10
    if options.gray or options.gray16:
        config.data.channels = 1
        config.data.bits = 16 if options.gray16 and not options.smoke else 8
        for view in config.views:
            view.jitter_probability = view.grayscale_probability = 0.0
    return apply_smoke(config) if options.smoke else config
