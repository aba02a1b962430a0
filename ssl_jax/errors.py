"""Errors that the user can fix, reported in one line."""


class UserError(Exception):
    """A user's mistake: one line that names the setting, its value, what was expected and how to fix it.

    The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        """Return the message as one line, even if a value or another library's message contains several."""
        return " ".join(line.strip() for line in super().__str__().splitlines() if line.strip())
