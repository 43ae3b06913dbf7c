"""How the commands start: flags, overrides of the config, and a user's mistake as one line."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging as absl_logging

from resa_jax.compile_cache import keep_programs
from resa_jax.errors import UserError
from resa_jax.processes.interrupts import second_interrupt_ends
from resa_jax.schema import describe_fields
from resa_jax.terminal import log_to_terminal, reader_is_gone


_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache",
    None,
    "Folder that keeps compiled programs for later commands, or none; default "
    "JAX_COMPILATION_CACHE_DIR or ~/.cache/resa_jax.",
)


def run(main: Callable[[list[str]], None], *, overrides: bool = False) -> None:
    """Runs a command with absl flags; what the user can mend becomes one line and exit code 2.

    Args:
      main: gets the program's name and, with `overrides`, the arguments `--config.FIELD=VALUE`.
      overrides: whether the command takes such arguments.
    """

    def guarded(arguments):
        absl_logging.set_verbosity(absl_logging.WARNING)  # not the backends JAX looked for in vain
        log_to_terminal()
        try:
            _check_locale()
            keep_programs(_COMPILE_CACHE.value, os.environ)
            with second_interrupt_ends():
                main(arguments)
        except (UserError, FloatingPointError) as error:
            sys.exit(_fail(error))
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            if not reader_is_gone():
                raise
            sys.exit(141)  # as the shell has it for a program that SIGPIPE ends

    def parse(arguments):
        if {"--help", "-help", "-h"} & set(arguments[1:]):
            print(_help(sys.modules[main.__module__], overrides))
            sys.exit(0)
        arguments = [arguments[0], *map(_underscored, arguments[1:])]
        passed = [a for a in arguments if overrides and a.startswith("--config.")]
        try:
            rest = flags.FLAGS([a for a in arguments if a not in passed])
        except flags.Error as error:
            sys.exit(_fail(f"{str(error).splitlines()[0]} See --help."))
        if len(rest) > 1:
            sys.exit(_fail(f"{rest[1]!r} is no flag; flags look like --name=value."))
        return rest + passed

    app.run(guarded, flags_parser=parse)


def _underscored(argument: str) -> str:
    """--dry-run as --dry_run: both spellings are usual."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _check_locale() -> None:
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise UserError(
            f"The locale's encoding is {encoding}, in which names of files cannot all be written: "
            "set the environment variable PYTHONUTF8=1."
        )


def _fail(message) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _help(command, overrides):
    parts = [command.__doc__ or "", *_flag_lines(command)]
    if overrides:
        parts += ["\n--config.FIELD=VALUE sets a field; (*): also when a run is resumed.\n"]
        parts += [describe_fields()]
    return "\n".join(parts)


def _flag_lines(command):
    own = flags.FLAGS.get_key_flags_for_module(command)
    for flag in (*own, flags.FLAGS["compile_cache"]):
        default = "" if flag.default is None else f" (default {flag.default})"
        yield f"  --{flag.name}  {flag.help}{default}"
