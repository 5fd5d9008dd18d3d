"""One root for every error that a user can meet, and the exit code that each ends the command line with.

A message says what is wrong, why, and what to do: `num_frames=50: this model needs 4k+1. Use 49 or 53.`
"""


class DitVideoError(Exception):
    """Root of the package's errors; exit code 1."""

    exit_code = 1


class BadInput(DitVideoError):
    """A flag, a file or a configuration that cannot be right; exit code 2."""

    exit_code = 2


class MissingError(DitVideoError):
    """A dependency, device or file that is not there; exit code 3."""

    exit_code = 3


class OutOfMemory(DitVideoError):
    """The device has too little memory; exit code 4."""

    exit_code = 4


class NonFinite(DitVideoError):
    """NaN or infinity in weights, latents or loss; exit code 5."""

    exit_code = 5


class Partial(DitVideoError):
    """Some of the work succeeded and is kept; exit code 6."""

    exit_code = 6


class Preempted(DitVideoError):
    """The machine was taken away; the run can be resumed; exit code 75."""

    exit_code = 75


class Interrupted(DitVideoError):
    """The user pressed Ctrl-C; what was done is kept; exit code 130."""

    exit_code = 130
