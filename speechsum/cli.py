"""The command line. Imports nothing but the standard library until a command is chosen, so `--help` is instant.

Four kinds of end: a mistake of the user is one sentence and exit code 2, a run that cannot go on one sentence and 1,
a run that was asked to stop (SIGTERM) 75 once it has saved, anything else one sentence and 1 with the traceback in a
file that the sentence names.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from speechsum import commands
from speechsum.arguments import build_parser
from speechsum.errors import INTERRUPTED, STOPPED, RunError, StopAsked, UserError

INTERRUPT_GRACE_S = 30.0
REFUSALS = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP}
"""What makes a path a wrong one; a disk that fills up does not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. argparse itself exits with 2 on options it does not know."""
    options = build_parser().parse_args(argv)
    try:
        with contextlib.nullcontext() if options.asks else _bounded_interrupt(lambda: _say_stopped(options)):
            return int(options.command(options))
    except UserError as error:
        return _complain(str(error), 2)
    except RunError as error:
        cause = f" (the whole story in {_write_traceback(options)})" if error.__cause__ else ""
        return _complain(f"{error}{cause}", 1)
    except (KeyboardInterrupt, StopAsked) as ending:
        _say_stopped(options)
        return STOPPED if isinstance(ending, StopAsked) else INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough; python would complain again on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the task's boundary
        if isinstance(error, OSError) and (given := _given_path(error, options)):
            return _complain(f"cannot use {given}: {error.strerror}; correct the path", 2)
        log = _write_traceback(options)
        first = (str(error).strip() or "no message").splitlines()[0]
        hint = "; `speechsum doctor` shows what is missing" if isinstance(error, ImportError) else ""
        return _complain(f"{type(error).__name__}: {first}{hint} (traceback in {log})", 1)


def _given_path(error: OSError, options: argparse.Namespace) -> Path | None:
    """The path among the options that the system refused, such as a name that is too long or a folder of others'."""
    if error.errno not in REFUSALS:
        return None
    paths = [each for value in vars(options).values() for each in (value if isinstance(value, list) else [value])]
    refused = Path(os.fsdecode(error.filename or "")).absolute()
    return next((p for p in paths if isinstance(p, Path) and refused.is_relative_to(p.absolute())), None)


def _complain(sentence: str, code: int) -> int:
    print(f"speechsum: error: {sentence}", file=sys.stderr)
    return code


def _say_stopped(options: argparse.Namespace) -> None:
    print(f"\nspeechsum: stopped; {_how_to_go_on(options)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bounded_interrupt(last_words: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends the process within `INTERRUPT_GRACE_S`, even where native code never gives the main thread back.

    Ray waits for its own start in C++, where a KeyboardInterrupt cannot be raised. Python's C handler still writes the
    signal's number to the wake-up pipe, and a thread reads it. What Ray had started dies with this process.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    left = threading.Event()

    def insist() -> None:
        while number := os.read(read, 1):
            if number[0] == signal.SIGINT and not left.wait(INTERRUPT_GRACE_S):
                last_words()
                os._exit(INTERRUPTED)
        os.close(read)

    before = signal.set_wakeup_fd(write)
    threading.Thread(target=insist, name="interrupt", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(write)


def _how_to_go_on(options: argparse.Namespace) -> str:
    run_dir: Path | None = getattr(options, "run_dir", None)
    recipe = getattr(options, "recipe", None)
    if options.command is not commands.train or run_dir is None or not os.path.exists(run_dir / "config.json"):
        return "run the same command to start again"
    command = [*_own_name(), "train", str(recipe), "--run-dir", str(run_dir)]
    command += [part for override in options.override for part in ("-o", override)]
    command += ["--address", options.address] if options.address else []
    saved = any((run_dir / "checkpoints").glob("step_??????"))
    begin = "go on from the last checkpoint" if saved else "no checkpoint was saved yet; start again"
    return f"{begin} with: {shlex.join([*command, '--resume'])}"


def _own_name() -> list[str]:
    """What starts this program again: `speechsum` where the shell finds it, else as it was started."""
    if shutil.which("speechsum"):
        return ["speechsum"]
    return [sys.argv[0]] if Path(sys.argv[0]).name == "speechsum" else [sys.executable, "-m", "speechsum"]


def _write_traceback(options: argparse.Namespace) -> Path:
    """Into the run's logs where there is a run, else into a temporary file."""
    run_dir: Path | None = getattr(options, "run_dir", None)
    logs = run_dir / "logs" if run_dir is not None else None
    folder = logs if logs is not None and os.path.isdir(logs) and os.access(logs, os.W_OK) else None
    handle, name = tempfile.mkstemp(prefix="speechsum-error-", suffix=".log", dir=folder)
    with open(handle, "w", encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return Path(name)


if __name__ == "__main__":
    sys.exit(main())
