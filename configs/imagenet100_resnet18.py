"""ReSA on ImageNet-100 with a ResNet-18 (Tables 1 and 8 of the paper).

400 epochs, batch 128, SGD with lr 0.5 and weight decay 2.5e-5, no predictor, bfloat16. The paper
reports 82.24 % linear and 74.56 % k-NN accuracy. One GPU.

    python -m resa_jax.main --config=configs/imagenet100_resnet18.py --workdir=runs/imagenet100

The 100 classes are those of the list that CMC published, one synset a line, in the file
`imagenet100.txt` (set data.classes to read another). A folder that holds only these classes needs
no list:

    --config.data.source=folder:imagenet100/train --config.data.test_source=folder:imagenet100/val
"""

from ml_collections import ConfigDict

from resa_jax.recipes import apply_smoke, default_config, parse_variant


def get_config(variant: str | None = None) -> ConfigDict:
    """`smoke` is the only variant."""
    options = parse_variant(variant, smoke=False)
    config = default_config()
    config.epochs = 400
    config.batch_size = 128
    config.weight_decay = 2.5e-5
    config.precision = "bfloat16"
    config.encoder.name = "resnet18"
    config.data.source = "tfds:imagenet2012"
    config.data.test_source = "tfds:imagenet2012@validation"
    config.data.classes = "imagenet100.txt"
    config.data.resize = 256
    config.data.workers = 8
    config.eval.every_epochs = 20
    return apply_smoke(config) if options.smoke else config
