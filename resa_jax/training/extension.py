"""A finished run that goes on for more epochs, with a schedule of its own for them."""

import logging
import math
import os

from ml_collections import ConfigDict

from resa_jax.config import read_config_file
from resa_jax.errors import UserError
from resa_jax.paths import as_path
from resa_jax.training.finish import is_finished


_LOG = logging.getLogger("resa_jax")


def count_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Steps of a whole run."""
    return config.steps or math.ceil(config.epochs * steps_per_epoch)


def with_schedule_start(
    config: ConfigDict, workdir: str | os.PathLike, steps_per_epoch: int, extend: bool
) -> ConfigDict:
    """A recipe with the step at which the schedules of the run in `workdir` start.

    That is 0 but for a run that was extended: after its last step warm-up, learning rate and EMA
    coefficient begin anew for what is added, and the state, the optimiser's included, stays. An
    extended run goes on by the same command, with `--extend` or without.

    Args:
      extend: whether a run that has finished as it was is to go on.

    Raises:
      UserError: there is nothing to extend, or it is not finished, or the run does not get longer.
    """
    path = as_path(workdir, "--workdir=") / "config.json"
    if not path.is_file():
        if extend:
            raise UserError(f"--extend: {workdir} holds no run to go on with.")
        return config
    old = read_config_file(path)
    before, after = (count_steps(each, steps_per_epoch) for each in (old, config))
    config = config.copy_and_resolve_references()
    config.start_step = old.start_step
    if not extend or before == after:
        return config
    if not is_finished(path.parent, before):
        raise UserError(
            f"--extend: the run in {workdir} has not finished its {before} steps. Finish it first: "
            "the command that started it goes on with it."
        )
    if after < before:
        raise UserError(
            f"--extend: the run in {workdir} has {before} steps, and config.epochs={config.epochs} "
            f"makes {after}; give more epochs than {old.epochs}."
        )
    _LOG.info("The run of %d steps goes on to %d, with a schedule of its own.", before, after)
    config.start_step = before
    return config
