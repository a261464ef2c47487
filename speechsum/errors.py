"""The two kinds of error a person meets: theirs, with a remedy, and ours."""


class UserError(ValueError):
    """Something the user can mend. The message is one sentence that names the thing and the remedy; exit code 2."""


class RunError(RuntimeError):
    """The run cannot go on, for a reason with a name (judge failing, parity refused). Exit code 1."""
