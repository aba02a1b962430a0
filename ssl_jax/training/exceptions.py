"""Why a run stops before its end. Each is one line and an exit status; none is a traceback for the user."""


class Stopped(Exception):
    """The run stopped; what is saved is sound. The command line prints the line and exits with `status`."""

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
