"""What a user can mend, told in one line."""


class UserError(Exception):
    """A mistake of the user's: one line that names the thing, the value, what was expected and the mend.

    The command line prints it without a traceback and exits with status 2.
    """
