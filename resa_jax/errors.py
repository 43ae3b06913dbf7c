"""The one exception that a user's input can cause."""


class UserError(ValueError):
    """A mistake in the user's input.

    One sentence that names the field or file, its value, and what would be right.

    Commands print it without a traceback and exit with code 2.
    """
