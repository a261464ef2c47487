"""The layer rule, statically by import-linter and at run time by looking at what an import really loads."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import speechsum

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "vllm", "transformers")

# The starter package builds and reads models, and may load what it needs for that.
MODULES = sorted(
    module.name
    for module in pkgutil.iter_modules(speechsum.__path__, prefix="speechsum.")
    if module.name not in {"speechsum.starter", "speechsum.__main__"}
)


def heavy_modules_after(statement: str) -> list[str]:
    """Run a statement in a fresh interpreter and return which heavy packages it loaded."""
    report = f"import json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed: run `make setup-dev`")
    result = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_speechsum_loads_nothing_heavy() -> None:
    everything = "\n".join(f"import {name}" for name in ["speechsum", *MODULES])
    loaded = heavy_modules_after(everything)
    culprits = {name: heavy for name in MODULES if loaded and (heavy := heavy_modules_after(f"import {name}"))}
    assert not loaded, f"loaded at import: {culprits or loaded}"


def test_help_answers_without_loading_anything_heavy() -> None:
    ask = "import sys\nfrom speechsum.cli import main\nsys.argv = ['speechsum', '--help']\n"
    assert heavy_modules_after(f"{ask}try:\n    main()\nexcept SystemExit as end:\n    assert not end.code") == []
