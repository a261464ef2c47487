"""What the pod runs: begin the run, or go on with it where an earlier attempt has begun it.

KubeRay answers a failed attempt with a new Ray cluster and the same command, and `train` would refuse a folder that
holds a run unless it is told to resume.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.run_folder import RunFolder
from speechsum import cli


def arguments(recipe: str, run_dir: str) -> list[str]:
    """The words after `speechsum`."""
    begun = RunFolder(Path(run_dir)).config.is_file()
    return ["train", recipe, "--run-dir", run_dir, "--address", "auto", *(["--resume"] if begun else [])]


def main(words: Sequence[str]) -> int:
    """Run it; the exit code is that of `speechsum train`."""
    return cli.main(arguments(*words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
