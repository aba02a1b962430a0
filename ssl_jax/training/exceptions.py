"""Exceptions that stop a run before its end. The user sees one line and an exit status, without a traceback."""


class Stopped(Exception):
    """The run stopped; saved checkpoints are valid. The command line prints the message and exits with `status`."""

    status = 1


class Preempted(Stopped):
    """A shutdown signal (exit status 128 + its number): the last completed step is saved."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Diverged(Stopped):
    """A loss or gradient is not finite."""


class ReadingFailed(Stopped):
    """A process that reads examples died; the last completed step is saved."""


class SaveFailed(Stopped):
    """A checkpoint could not be written."""
