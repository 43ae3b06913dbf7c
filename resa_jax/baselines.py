"""The methods that Table 1 compares ReSA with, each with the settings of its source.

solo-learn's scripts/pretrain/{cifar,imagenet-100}; for W-MSE, CW-RGP and INTL the authors' own code
(htdt/self-supervised, winci-ai/CW-RGP, winci-ai/INTL). CIFAR-10 and CIFAR-100 share all but what
`cifar_baseline` says.
"""

from ml_collections import ConfigDict

from resa_jax.recipes import cifar_config, imagenet100_config, standard_view


BASELINES = (
    *("simclr", "byol", "swav", "simsiam", "mocov3", "wmse", "dino", "barlow_twins", "vicreg"),
    *("cw_rgp", "intl"),
)
# Learning rate for 256 images, weight decay, EMA coefficient, views (see `_views`).
_SOLO_LEARN = {
    "simclr": (0.4, 1e-4, None, "strong"),
    "byol": (1.0, 1e-5, 0.99, "unlike"),
    "swav": (0.6, 1e-6, None, "strong"),
    "simsiam": (0.5, 1e-5, None, "weaker"),
    "mocov3": (0.3, 1e-6, 0.99, "unlike"),
    "dino": (0.3, 1e-6, 0.9995, "unlike"),
    "barlow_twins": (0.3, 1e-4, None, "unlike"),
    "vicreg": (0.3, 1e-4, None, "vicreg"),
}


def cifar_baseline(method: str, num_classes: int = 10) -> ConfigDict:
    """A method's recipe for CIFAR: 1,000 epochs, batch 256 unless its source says otherwise."""
    config = cifar_config(method)
    config.views = _views(method, large=False)
    if method in _SOLO_LEARN:
        _as_solo_learn(config, method)
    elif method == "intl":
        config.encoder.name = "resnet18_small"
        config.base_lr, config.weight_decay = 0.3, 1e-4
        config.final_lr, config.warmup_start_lr = 3e-4, 0.3 / 390
    else:
        config.encoder.name = "resnet18_small"
        config.optimizer.name = "adam"
        config.weight_decay = 1e-6
        config.lr_drops = (50, 25)
        config.warmup_steps = 500
        whole_batch = method == "wmse" or num_classes == 100
        config.batch_size = 512 if whole_batch else 256
        config.base_lr = 3e-3 * 256 / config.batch_size
        config.warmup_start_lr = 3e-3 / config.warmup_steps
        if method == "cw_rgp" and num_classes == 100:
            config.method.iterations = 1
    return config


def imagenet100_baseline(method: str) -> ConfigDict:
    """A method's recipe for ImageNet-100: 400 epochs of batches of 256 (INTL: 128).

    W-MSE's is its own source's (240 epochs of batches of 512); CW-RGP published none, so that of
    W-MSE stands in.
    """
    config = imagenet100_config(method)
    config.batch_size = 256
    config.views = _views(method, large=True)
    if method in _SOLO_LEARN:
        _as_solo_learn(config, method)
        if method == "simclr":
            config.base_lr = 0.3
            config.method.update({"hidden_size": 4096, "output_size": 512})
        elif method == "byol":
            config.base_lr, config.weight_decay = 0.5, 1e-6
            config.method.predictor_size = 8192
        elif method == "dino":
            config.method.teacher_temperature_epochs = 50
    elif method == "intl":
        config.batch_size, config.base_lr, config.weight_decay = 128, 0.5, 2.5e-5
        config.final_lr, config.warmup_start_lr = 2.5e-4, 0.25 / 1978
        config.method.update({"hidden_size": 4096, "output_size": 4096})
    else:
        config.optimizer.name = "adam"
        config.epochs, config.batch_size, config.base_lr = 240, 512, 1e-3
        config.weight_decay = 1e-6
        config.lr_drops, config.warmup_steps = (50, 25), 500
        config.warmup_start_lr = 2e-3 / config.warmup_steps
        if method == "wmse":
            config.method.update({"slice_size": 256, "output_size": 128})
    return config


def _as_solo_learn(config, method):
    rate, decay, ema, _ = _SOLO_LEARN[method]
    config.base_lr, config.weight_decay = rate, decay
    config.final_lr, config.warmup_epochs, config.warmup_start_lr = 0.0, 10, 3e-5
    config.optimizer.name = "sgd" if method == "simsiam" else "lars"
    if ema is not None:
        config.ema_momentum = ema


def _views(method: str, *, large: bool) -> list[ConfigDict]:
    """The two views; `large`: 224 pixels, where some blur that on CIFAR do not."""
    kind = _SOLO_LEARN[method][3] if method in _SOLO_LEARN else method
    if kind == "weaker" and large:
        kind = "unlike"  # SimSiam's recipe for ImageNet-100 reads this file
    plain = {"blur_probability": 0.0, "solarize_probability": 0.0, "crop_scale": (0.08, 1.0)}
    vivid = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    if kind in ("unlike", "intl"):
        first, second = ({"blur_probability": p if large else 0.0} for p in (1.0, 0.1))
        return [
            standard_view(**plain | first),
            standard_view(**plain | second | {"solarize_probability": 0.2}),
        ]
    if kind == "strong":
        changes = plain | vivid | {"blur_probability": 0.5}
    elif kind == "weaker":
        changes = plain | {"saturation": 0.4, "blur_probability": 0.5}
    elif kind == "vicreg":
        changes = plain | {"crop_scale": (0.2, 1.0), "solarize_probability": 0.1}
        changes |= {"blur_probability": 0.5 if large else 0.0}
    elif large:
        changes = plain | vivid | {"blur_probability": 0.5, "color_first": True}
    else:
        changes = plain | {"crop_scale": (0.2, 1.0), "saturation": 0.4, "color_first": True}
        changes |= {"grayscale_probability": 0.1}
    return [standard_view(**changes), standard_view(**changes)]
