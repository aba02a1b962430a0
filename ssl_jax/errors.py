"""What a user can mend, told in one line."""


class UserError(Exception):
    """A mistake of the user's: one line that names the thing, the value, what was expected and the mend.

    The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        """One line, whatever the value or another library's message brought with it."""
        return " ".join(line.strip() for line in super().__str__().splitlines() if line.strip())
