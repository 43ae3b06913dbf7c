"""The methods that Table 1 compares ReSA with, each with the settings of its source.

solo-learn's scripts/pretrain/{cifar,imagenet-100}; for W-MSE, CW-RGP and INTL the authors' own code
(htdt/self-supervised, winci-ai/CW-RGP, winci-ai/INTL). CIFAR-10 and CIFAR-100 share all but what
`cifar_baseline` says.
"""

from ml_collections import ConfigDict

from resa_jax.recipes import cifar_config, default_config, imagenet100_config, standard_view


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

# On ImageNet with a ResNet-50, by the authors' own code: optimiser, learning rate for 256 images,
# weight decay, EMA coefficient, warm-up in epochs, final rate over the highest, batch, views and
# their smallest crop.
_IMAGENET = {
    "simclr": ("lars", 0.3, 1e-6, None, 10, 0.0, 4096, "simclr", 0.08),
    "byol": ("lars", 0.45, 1e-6, 0.99, 10, 0.0, 4096, "unlike", 0.08),
    "swav": ("lars", 0.3, 1e-6, None, 10, 0.001, 4096, "strong", 0.08),
    "simsiam": ("sgd", 0.05, 1e-4, None, 0, 0.0, 256, "weaker", 0.2),
    "mocov3": ("lars", 0.3, 1e-6, 0.99, 10, 0.0, 4096, "unlike", 0.2),
    "barlow_twins": ("lars", 0.2, 1e-6, None, 10, 0.001, 2048, "unlike", 0.08),
    "vicreg": ("lars", 0.2, 1e-6, None, 10, 0.001, 2048, "vicreg", 0.08),
    "mec": ("sgd", 0.5, 1e-5, 0.996, 10, 0.0, 1024, "unlike", 0.2),
    "intl": ("sgd", 0.3, 1e-5, None, 2, 0.001, 256, "intl", 0.08),
}
# Whose code crops ImageNet's images so; MEC's views are MoCo v3's.
_BILINEAR = ("swav", "simsiam", "mocov3", "mec")
IMAGENET_BASELINES, VIT_BASELINES = tuple(_IMAGENET), ("byol", "swav", "mocov3", "dino")


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
        if method == "cw_rgp":
            config.encoder.zero_init = True
            config.method.iterations = 1 if num_classes == 100 else 4
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
        config.optimizer.decay_vectors = False
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
        else:
            config.encoder.zero_init = True
    return config


def imagenet_baseline(method: str, epochs: int) -> ConfigDict:
    """A method's recipe for ImageNet and a ResNet-50, by the authors' settings (Table 2).

    Short of them: SimCLR's last layer has no BatchNorm here; LARS is solo-learn's rule with the
    authors' trust coefficient and without clipping; Barlow Twins' biases and SwAV's first rate have
    no rates of their own; Barlow Twins' and VICReg's linear layers keep biases, which their losses
    do not see; two views, of 224 pixels.
    """
    config = default_config(method)
    name, rate, decay, ema, warmup, floor, batch_size, _, crop = _IMAGENET[method]
    if method == "mocov3" and epochs == 100:
        rate = 0.6
    config.epochs, config.batch_size = epochs, batch_size
    config.base_lr, config.weight_decay = rate, decay
    config.final_lr = floor * rate * batch_size / 256
    config.warmup_epochs = warmup
    if method == "intl":
        config.warmup_start_lr = rate / (warmup * 5004)
    if method in ("byol", "swav"):
        config.encoder.zero_init = False
    config.optimizer.name = name
    config.optimizer.lars_trust, config.optimizer.lars_clip = 0.001, False
    config.optimizer.decay_vectors = method != "intl"
    if ema is not None:
        config.ema_momentum = ema
    config.views = _views(method, large=True, kind=_IMAGENET[method][7])
    for view in config.views:
        view.crop_scale = (crop, 1.0)
        if method in _BILINEAR:
            view.interpolation = "bilinear"
    own = {
        "simclr": {"temperature": 0.1, "three_layers": True, "output_size": 128},
        "swav": {"freeze_epochs": 1, "queue_size": 0},
        "mocov3": {"temperature": 1.0},
        "barlow_twins": {"hidden_size": 8192, "output_size": 8192, "scale": 1.0},
        "vicreg": {"hidden_size": 8192, "output_size": 8192, "variance_weight": 12.5},
        "intl": {"hidden_size": 8192, "output_size": 8192},
    }
    config.method.update(own.get(method, {}))
    return config


def vit_baseline(method: str) -> ConfigDict:
    """A method's recipe for ImageNet and a ViT-S/16: 300 epochs of batches of 1,024 (Table 3).

    MoCo v3's and DINO's are their authors'. BYOL's and SwAV's were published without settings for a
    ViT: theirs here are those of MoCo v3's.
    """
    config = default_config(method)
    config.epochs, config.batch_size = 300, 1024
    config.base_lr, config.final_lr, config.warmup_epochs = 1.5e-4, 0.0, 40
    config.weight_decay = 0.1
    config.ema_momentum = 0.99
    config.optimizer.name = "adamw"
    config.views = _views(method, large=True, kind="unlike")
    for view in config.views:
        view.crop_scale, view.interpolation = (0.08, 1.0), "bilinear"
    if method == "dino":
        config.base_lr, config.final_lr, config.warmup_epochs = 5e-4, 1e-6, 10
        config.ema_momentum = 0.996
        config.weight_decay, config.optimizer.final_weight_decay = 0.04, 0.4
        config.optimizer.decay_vectors, config.optimizer.max_norm = False, 3.0
        config.encoder.drop_path = 0.1
        config.method.update({"num_prototypes": 65_536, "teacher_temperature_epochs": 30})
        for view in config.views:
            view.crop_scale, view.interpolation = (0.14, 1.0), "bicubic"
    if method == "swav":
        config.method.update({"freeze_epochs": 1, "queue_size": 0})
    return config


def _as_solo_learn(config, method):
    rate, decay, ema, _ = _SOLO_LEARN[method]
    config.base_lr, config.weight_decay = rate, decay
    config.final_lr, config.warmup_epochs, config.warmup_start_lr = 0.0, 10, 3e-5
    config.optimizer.name = "sgd" if method == "simsiam" else "lars"
    if ema is not None:
        config.ema_momentum = ema


def _views(method: str, *, large: bool, kind: str | None = None) -> list[ConfigDict]:
    """The two views; `large`: 224 pixels, where some blur that on CIFAR do not."""
    given = kind
    kind = given or (_SOLO_LEARN[method][3] if method in _SOLO_LEARN else method)
    if kind == "weaker" and large and given is None:
        kind = "unlike"  # SimSiam's recipe for ImageNet-100 reads this file
    plain = {"blur_probability": 0.0, "solarize_probability": 0.0, "crop_scale": (0.08, 1.0)}
    vivid = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    if kind in ("unlike", "intl"):
        first, second = ({"blur_probability": p if large else 0.0} for p in (1.0, 0.1))
        return [
            standard_view(**plain | first),
            standard_view(**plain | second | {"solarize_probability": 0.2}),
        ]
    if kind in ("strong", "simclr"):
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
