"""How the commands start: flags, overrides of the config, and a user's mistake as one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from resa_jax.errors import UserError


def run(main: Callable[[list[str]], None], *, overrides: bool = False) -> None:
    """Runs a command with absl flags; what the user can mend becomes one line and exit code 2.

    Args:
      main: gets the program's name and, with `overrides`, the arguments `--config.FIELD=VALUE`.
      overrides: whether the command takes such arguments.
    """

    def guarded(arguments):
        logging.set_verbosity(logging.WARNING)  # not the backends that JAX looked for in vain
        try:
            main(arguments)
        except (UserError, FloatingPointError) as error:
            sys.exit(_fail(error))

    def parse(arguments):
        passed = [a for a in arguments if overrides and a.startswith("--config.")]
        try:
            rest = flags.FLAGS([a for a in arguments if a not in passed])
        except flags.Error as error:
            sys.exit(_fail(f"{str(error).splitlines()[0]} See --help."))
        if len(rest) > 1:
            sys.exit(_fail(f"{rest[1]!r} is no flag; flags look like --name=value."))
        return rest + passed

    app.run(guarded, flags_parser=parse)


def _fail(message) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
