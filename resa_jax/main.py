"""Pre-training from the command line.

python -m resa_jax.main --config=configs/NAME.py[:VARIANT] --workdir=DIR [--config.FIELD=VALUE ...]
"""

import sys

from absl import app, flags, logging

from resa_jax.config import load_config
from resa_jax.data.check import check_source
from resa_jax.errors import UserError
from resa_jax.workdir import claim_workdir


_CONFIG = flags.DEFINE_string("config", None, "Recipe: FILE.py or FILE.py:VARIANT.", required=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; the same folder again resumes it.", required=True
)


def main(arguments: list[str]) -> None:
    """Checks the configuration before anything heavy is imported, then trains."""
    config = load_config(_CONFIG.value, [a.removeprefix("--config.") for a in arguments[1:]])
    data = config.data
    count = check_source(data.source, classes=data.classes, long_tail=data.long_tail)
    if count is not None and config.batch_size > count:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but {data.source} holds only {count} "
            "images; a batch takes each at most once."
        )
    if data.test_source is not None:
        check_source(data.test_source, classes=data.classes, split="test")
    claim_workdir(_WORKDIR.value, config, write=False)

    from resa_jax.train_loop import train

    train(config, _WORKDIR.value)


def run(main) -> None:
    """Runs a command; a `UserError` becomes one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)

    def guarded(arguments):
        try:
            main(arguments)
        except (UserError, FloatingPointError) as error:
            sys.exit(_fail(error))

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(arguments):
    # Overrides of the config are no flags of their own: they pass through as positional arguments.
    overrides = [a for a in arguments if a.startswith("--config.")]
    try:
        rest = flags.FLAGS([a for a in arguments if a not in overrides])
    except flags.Error as error:
        sys.exit(_fail(f"{error}. See --help."))
    if len(rest) > 1:
        sys.exit(_fail(f"{rest[1]!r} is no flag; flags look like --name=value."))
    return rest + overrides


def _fail(message) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run(main)
