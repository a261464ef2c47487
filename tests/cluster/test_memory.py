"""Memory of a run: which processes count, and that the peak is kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.memory import MemoryWatch

MEGABYTES = 120
CHILD = "import sys; held = b'x' * int(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python that answers once it is up and lives until its standard input closes."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline().strip()
        yield process
        process.stdin.close()


def test_the_peak_includes_a_child_that_is_gone() -> None:
    with MemoryWatch(interval_s=60) as memory:
        alone = memory.sample()
        with child("-c", CHILD, str(MEGABYTES * 10**6)) as process:
            assert process.pid in memory.processes()
            together = memory.sample()
        after = memory.sample()
    assert together - alone > 0.9 * MEGABYTES / 1000
    assert after < together
    assert memory.peak_gb >= together


def test_the_thread_samples_by_itself_and_ends() -> None:
    with MemoryWatch(interval_s=0.01) as memory:
        pass
    assert memory.peak_gb > 0.005
    assert memory.last_gb > 0.005
    memory.close()


def fake_process(proc: Path, pid: int, parent: int, command: str, pss_kb: int | None, rss_kb: int = 0) -> None:
    """A made-up entry of /proc, in the kernel's format."""
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (odd) name) S {parent} 1 1 0")
    (folder / "cmdline").write_text(command.replace(" ", "\0"))
    if pss_kb is not None:
        (folder / "smaps_rollup").write_text(
            f"00-ff ---p [rollup]\nRss: {rss_kb} kB\nPss: {pss_kb} kB\nPss_Dirty: 1 kB\n"
        )
    (folder / "status").write_text(f"Name:\tx\nVmHWM:\t9 kB\nVmRSS:\t{rss_kb} kB\n")


def test_processes_are_found_by_descent_and_by_session(tmp_path: Path) -> None:
    me = os.getpid()
    fake_process(tmp_path, me, 1, "python", 1_000_000)
    fake_process(tmp_path, me + 1, me, "child", 2_000_000)
    fake_process(tmp_path, me + 2, me + 1, "grandchild", None, rss_kb=3_000_000)
    fake_process(tmp_path, me + 3, 1, "raylet --session-name=session_7", 4_000_000)
    fake_process(tmp_path, me + 4, me + 3, "ray::Actor", 5_000_000)
    fake_process(tmp_path, me + 5, 1, "raylet --session-name=session_8", 99_000_000)
    (tmp_path / "meminfo").touch()
    memory = MemoryWatch(proc=tmp_path)
    assert memory.processes() == {me, me + 1, me + 2}
    assert memory.sample() == 6 * 1.024
    memory.follow("session_7")
    assert memory.processes() == {me, me + 1, me + 2, me + 3, me + 4}
    assert memory.sample() == 15 * 1.024
    assert memory.peak_gb == 15 * 1.024
