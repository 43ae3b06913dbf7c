"""How the commands start: flags, and a user's mistake as one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from resa_jax.errors import UserError


def run(main: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Runs a command with absl flags; a `UserError` becomes one line and exit code 2."""

    def guarded(arguments):
        logging.set_verbosity(logging.WARNING)  # not the backends that JAX looked for in vain
        try:
            main(arguments)
        except UserError as error:
            sys.exit(_fail(error))

    app.run(guarded, argv=arguments, flags_parser=_parse_flags)


def _parse_flags(arguments):
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(_fail(f"{str(error).splitlines()[0]} See --help."))
    if len(rest) > 1:
        sys.exit(_fail(f"{rest[1]!r} is no flag; flags look like --name=value."))
    return rest


def _fail(message) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
