"""The two kinds of error a person meets, theirs with a remedy and ours, and the end that was asked for."""

import os
import re

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

STOPPED = os.EX_TEMPFAIL
"""Exit code 75 after a request to stop: to schedulers "try again", here "go on with --resume"."""


class UserError(ValueError):
    """Something the user can mend. The message is one sentence that names the thing and the remedy; exit code 2."""


class RunError(RuntimeError):
    """The run cannot go on, for a reason with a name (judge failing, parity refused). Exit code 1."""


class StopAsked(BaseException):
    """The run was asked to end (SIGTERM) and has saved what it could. Exit code 75, "go on with --resume".

    No failure, so no `Exception`: like a KeyboardInterrupt it passes whatever handles failures on its way.
    """


def last_line(error: BaseException) -> str:
    """What went wrong, of an error that quotes a whole traceback, as Ray's do, or ends on a link, as pydantic's."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    lines = [line for line in lines if not line.startswith("For further information visit")] or lines
    return lines[-1] if lines else type(error).__name__
