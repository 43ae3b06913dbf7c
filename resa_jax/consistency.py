"""Fields of a recipe that must agree with one another. Imports nothing heavy."""

from ml_collections import ConfigDict

from resa_jax.errors import UserError
from resa_jax.image_size import height_width, size_in_words


def check_consistency(config: ConfigDict) -> None:
    """Raises a `UserError` for the first fields, each of which may be right, that do not agree."""
    if len(config.views) < 2:
        raise UserError(f"config.views has {len(config.views)} view; two at least are needed.")
    _check_schedule(config)
    _check_images(config)


def _check_schedule(config: ConfigDict) -> None:
    if config.steps is None and config.warmup_epochs >= config.epochs:
        raise UserError(
            f"config.warmup_epochs is {config.warmup_epochs}, and config.epochs {config.epochs}: "
            "the warm-up must be shorter than the run."
        )
    if config.steps is None and config.lr_drops and max(config.lr_drops) >= config.epochs:
        raise UserError(
            f"config.lr_drops is {config.lr_drops}, and config.epochs {config.epochs}: each drop "
            "must be fewer epochs before the end than the run has."
        )
    if config.optimizer.name == "lars" and config.optimizer.final_weight_decay is not None:
        raise UserError(
            f"config.optimizer.final_weight_decay is {config.optimizer.final_weight_decay:g}, but "
            "LARS has one weight decay for the whole run: leave it out, or take another optimizer."
        )
    rate = config.base_lr * config.batch_size / 256
    if config.final_lr is not None and config.final_lr > rate:
        raise UserError(
            f"config.final_lr is {config.final_lr:g}; it must be at most the learning rate, "
            f"{rate:g} (config.base_lr x config.batch_size / 256)."
        )
    if config.warmup_start_lr > rate:
        raise UserError(
            f"config.warmup_start_lr is {config.warmup_start_lr:g}; it must be at most the "
            f"learning rate, {rate:g} (config.base_lr x config.batch_size / 256)."
        )


def _check_images(config: ConfigDict) -> None:
    size, resize = config.encoder.image_size, config.data.resize
    if resize is not None and resize < min(height_width(size)):
        raise UserError(
            f"config.data.resize is {resize}, too small for the {size_in_words(size)} of "
            "config.encoder.image_size that are cropped from it: make it larger, or none."
        )
    for name in ("mean", "std"):
        numbers, channels = config.data[name], config.data.channels
        if numbers != "auto" and len(numbers) != channels:
            raise UserError(
                f"config.data.{name} has {len(numbers)} numbers, and config.data.channels is "
                f"{channels}: give one for each channel, or 'auto'."
            )
