"""ReSA on ImageNet with a ViT-S/16 (Tables 3 and 8 of the paper).

300 epochs, batch 1,024, AdamW with lr 5e-4 and weight decay 0.1, 40 epochs of warm-up, with a
predictor, bfloat16. The patch embedding is fixed, and so are the positions. The paper reports 72.7
% linear and 68.3 % 20-NN accuracy. Eight GPUs or a TPU v3-8 slice and larger.

    python -m resa_jax.main --config=configs/imagenet_vits.py --workdir=runs/vits

The learning rate ends at 0.1 x lr = 2e-4. The authors' ViT runs ended at 1e-4, as `:authors` does.

The methods that Table 3 compares with train by their names (`resa_jax/baselines.py` says by whose
settings). Linear and 20-NN accuracy that the paper reports, in percent, none of it measured here:
byol 71.4, 66.6; swav 68.5, 60.5; mocov3 72.5, 67.7; dino 72.5, 67.9.

    python -m resa_jax.main --config=configs/imagenet_vits.py:dino --workdir=runs/vits_dino

From the usual folder layout instead of TFDS:

    --config.data.source=folder:imagenet/train --config.data.test_source=folder:imagenet/val
"""

from ml_collections import ConfigDict

from resa_jax.baselines import VIT_BASELINES, vit_baseline
from resa_jax.recipes import apply_smoke, default_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a method of Table 3, `authors` (their final learning rate), `smoke`."""
    options = parse_variant(variant, VIT_BASELINES, smoke=False, authors=False)
    if options.method == "resa":
        config = default_config()
        config.epochs = 300
        config.batch_size = 1024
        config.base_lr = 5e-4
        config.final_lr = 1e-4 if options.authors else None
        config.warmup_epochs = 40
        config.weight_decay = 0.1
        config.method.predictor = True
        config.optimizer.name = "adamw"
    else:
        config = vit_baseline(options.method)
    config.precision = "bfloat16"
    config.encoder.name = "vit_s16"
    config.data.source = "tfds:imagenet2012"
    config.data.test_source = "tfds:imagenet2012@validation"
    config.data.resize = 256
    config.eval.every_epochs = 10
    return apply_smoke(config, width=64, depth=2) if options.smoke else config
