"""What recipes are made of: the default of every field, the two views, variants, the smoke size."""

from ml_collections import ConfigDict

from resa_jax.errors import UserError


def default_config() -> ConfigDict:
    """All fields of a recipe, with the values that most of them share."""
    return ConfigDict(
        {
            "seed": 0,
            "epochs": 100,
            "steps": None,  # instead of epochs x steps per epoch
            "batch_size": 256,  # global
            "base_lr": 0.5,  # lr = base_lr x batch_size / 256
            "final_lr": None,  # None: 0.1 x lr
            "warmup_epochs": 2,
            "weight_decay": 1e-5,
            "temperature": 0.4,
            "epsilon": 0.05,
            "ema_momentum": 0.996,
            "symmetric": False,
            "assignment": "encoding",
            "momentum_network": True,
            "predictor": False,
            "precision": "float32",
            "sharding": "dp",
            "init_from": None,  # an encoder to start both networks from
            "log_every": 50,  # steps
            "profile": None,  # (first step, number of steps) to trace into WORKDIR/profile
            "optimizer": {"name": "sgd"},
            "encoder": {
                "name": "resnet18",
                "image_size": 224,
                "patch_size": None,  # None: by the name; likewise width and depth
                "width": None,
                "depth": None,
                "remat": False,
            },
            "projector": {"hidden_size": 2048, "output_size": 512},
            "views": [weak_view(), standard_view()],
            "data": {
                "source": "digits",
                "test_source": None,
                "mean": (0.485, 0.456, 0.406),  # or "auto": measured on the source
                "std": (0.229, 0.224, 0.225),
                "canvas": 512,  # long side to which large images are reduced, pixels
                "resize": None,  # short side before the centre crop; None: the encoder's image size
                "classes": None,  # a file that lists the classes to keep
                "long_tail": None,  # ratio of the largest class to the smallest
                "on_bad_image": "error",
                "workers": 2,
            },
            "eval": {
                "every_epochs": 0,  # 0: only after the last step
                "max_images": 10_000,  # of each source; the first ones of a fixed shuffle
                "batch_size": 256,
                "baselines": False,  # also show pixels and the random encoder at the end
            },
            "checkpoint": {"every_epochs": 1, "keep": 2},
        },
        type_safe=False,  # check_config knows which fields take several types
    ).lock()


def weak_view(size: int | None = None, **fields) -> ConfigDict:
    """The view that the assignment is made of: resized crop (bilinear) and flip."""
    return ConfigDict(
        {
            "size": size,  # pixels; None: the encoder's image size
            "crop": "random",  # or "center": the largest centred square (Figure 6)
            "crop_scale": (0.2, 1.0),  # share of the area
            "crop_ratio": (3 / 4, 4 / 3),  # width / height
            "interpolation": "bilinear",
            "flip_probability": 0.5,
            "jitter_probability": 0.0,
            "brightness": 0.0,
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
            "grayscale_probability": 0.0,
            "blur_probability": 0.0,
            "blur_sigma": (0.1, 2.0),  # pixels
            "solarize_probability": 0.0,
        }
        | fields
    )


def standard_view(size: int | None = None, **fields) -> ConfigDict:
    """The strongly augmented view: bicubic crop, jitter, grayscale, blur, solarise, flip."""
    strong = {
        "interpolation": "bicubic",
        "jitter_probability": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale_probability": 0.2,
        "blur_probability": 0.5,
        "solarize_probability": 0.2,
    }
    return weak_view(size, **(strong | fields))


def cifar_config() -> ConfigDict:
    """What the CIFAR recipes share (Table 8): ResNet-18, 1,000 epochs, no blur, no predictor."""
    config = default_config()
    config.epochs = 1000
    config.base_lr = 0.3
    config.weight_decay = 1e-4
    config.encoder.update({"name": "resnet18_cifar", "image_size": 32})
    config.views = [weak_view(), standard_view(blur_probability=0.0)]
    config.eval.every_epochs = 20
    config.checkpoint.every_epochs = 10
    return config


def parse_variant(variant: str | None, **options) -> ConfigDict:
    """Reads the words after a config's colon, as in `imagenet_resnet50.py:bs1024,epochs=200`.

    Args:
      variant: words separated by commas, each `name` (a switch) or `name=value`.
      **options: the words that the config knows, with their defaults: False for a switch, or a
        whole number.
    """
    values = dict(options)
    for word in filter(None, (variant or "").split(",")):
        name, _, text = word.partition("=")
        if name not in options:
            known = ", ".join(f"{n}={v}" if v is not False else n for n, v in options.items())
            raise UserError(f"This config has no variant {name!r}; it knows: {known}.")
        kind = type(options[name])
        try:
            values[name] = True if kind is bool and not text else kind(text)
        except ValueError:
            raise UserError(f"Variant {name}={text} needs a whole number.") from None
    return ConfigDict(values)


def apply_smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe to some seconds on a CPU: same code paths, tiny networks, a few steps.

    The images are scikit-learn's digits unless another source is given.
    """
    config.steps = 3
    config.batch_size = 8
    config.warmup_epochs = 0
    config.log_every = 1
    config.projector = ConfigDict({"hidden_size": 32, "output_size": 16})
    config.data.update({"source": "digits", "test_source": None, "workers": 0, "classes": None})
    config.data.long_tail = None
    config.eval.update({"max_images": 64, "batch_size": 32})
    if config.encoder.name.startswith("vit"):
        config.encoder.update({"width": 64, "depth": 2})
    else:
        config.encoder.width = 8
    return config
