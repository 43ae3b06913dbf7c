"""ReSA on ImageNet-100 with a ResNet-18 (Tables 1 and 8 of the paper).

400 epochs, batch 128, SGD with lr 0.5 and weight decay 2.5e-5, no predictor, bfloat16. The paper
reports 82.24 % linear and 74.56 % k-NN accuracy. One GPU.

    python -m resa_jax.main --config=configs/imagenet100_resnet18.py --workdir=runs/imagenet100

The methods that Table 1 compares with train by their names, with the settings of their sources
(`resa_jax/baselines.py`):

    python -m resa_jax.main --config=configs/imagenet100_resnet18.py:byol --workdir=runs/byol100

The 100 classes are those of the list that CMC published, one synset a line, in the file
`imagenet100.txt` (set data.classes to read another). A folder that holds only these classes needs
no list:

    --config.data.source=folder:imagenet100/train --config.data.test_source=folder:imagenet100/val
"""

from ml_collections import ConfigDict

from resa_jax.baselines import BASELINES, imagenet100_baseline
from resa_jax.recipes import apply_smoke, imagenet100_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a method of Table 1, `smoke`."""
    options = parse_variant(variant, BASELINES, smoke=False)
    if options.method == "resa":
        config = imagenet100_config()
        config.batch_size = 128
        config.weight_decay = 2.5e-5
    else:
        config = imagenet100_baseline(options.method)
    config.data.source = "tfds:imagenet2012"
    config.data.test_source = "tfds:imagenet2012@validation"
    config.data.classes = "imagenet100.txt"
    return apply_smoke(config) if options.smoke else config
