"""What a submitted job runs: the command line, and a last line in the log that says how it ended.

Ray notes a driver's exit code except where it was asked to stop the job, and that is when it matters whether a
checkpoint was saved.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from speechsum import cli
from speechsum.errors import STOPPED

LAST_LINE = "speechsum: the driver ends with exit code "


def main(arguments: Sequence[str]) -> int:
    """Run one `speechsum` command; SIGTERM before it listens for itself ends it with the code of a stop."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        code = cli.main(arguments)
    except SystemExit as ending:  # options it does not know, or `_leave`
        code = ending.code if isinstance(ending.code, int) else 1
    print(f"{LAST_LINE}{code}", flush=True)
    return code


def told_exit_code(log: str) -> int | None:
    """The exit code in a driver's last words; None where it was killed before it could say any."""
    found = re.findall(rf"^{re.escape(LAST_LINE)}(\d+)$", log, re.MULTILINE)
    return int(found[-1]) if found else None


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
