"""What no source of ours may do, since it reads what strangers wrote: unpickle, run a checkpoint's code or a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("speechsum", "actors", "learner", "cluster", "tools")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "ray.cloudpickle"}
UNPICKLES = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle"}
RUNS = {"eval", "exec", "os.system", "os.popen"}
REFUSED_VALUES: dict[str | None, set[bool | None]] = {
    "allow_pickle": {True},
    "trust_remote_code": {True, None},
    "shell": {True},
    "use_safetensors": {False, None},
}
INSECURE = "VLLM_ALLOW_INSECURE_SERIALIZATION"


def faults(text: str) -> Iterator[str]:
    """Every call and import that is refused. A value that is worked out counts as the worst it may be."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in PICKLES)
        elif isinstance(node, ast.ImportFrom):
            yield from (name for name in _imported(node) if name in PICKLES | UNPICKLES | RUNS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in UNPICKLES | RUNS:
                yield name
            yield from (f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords if _is_refused(word))
        elif isinstance(node, ast.Dict):
            yield from (
                f"{key.value}={ast.unparse(value)}"
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and _is_refused(ast.keyword(arg=str(key.value), value=value))
            )


def _imported(node: ast.ImportFrom) -> list[str]:
    return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]


def _is_refused(word: ast.keyword) -> bool:
    if word.arg not in REFUSED_VALUES:
        return False
    return not isinstance(word.value, ast.Constant) or word.value.value in REFUSED_VALUES[word.arg]


def test_no_source_unpickles_or_runs_what_it_reads() -> None:
    found = {str(path.relative_to(ROOT)): list(faults(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from pickle import loads", ["pickle"]),
        ("from torch import load", ["torch.load"]),
        ("from ray import cloudpickle", ["ray.cloudpickle"]),
        ("import torch\ntorch.load(path, weights_only=True)", ["torch.load"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle=True"]),
        ("AutoConfig.from_pretrained(p, trust_remote_code=config.trust)", ["trust_remote_code=config.trust"]),
        ("arguments = {'trust_remote_code': True}", ["trust_remote_code=True"]),
        ("subprocess.run(line, shell=True)", ["shell=True"]),
        ("yaml.load(text)", ["yaml.load"]),
        ("eval(text)", ["eval"]),
        ("np.load(path)\nyaml.safe_load(text)\nmodel.eval()\nf(trust_remote_code=False, shell=False)", []),
    ],
)
def test_each_of_these_would_be_found(text: str, found: list[str]) -> None:
    assert list(faults(text)) == found


def test_vllms_insecure_serialization_is_off_and_nothing_turns_it_on() -> None:
    named = {path.relative_to(ROOT).as_posix() for path in SOURCES if INSECURE in path.read_text(encoding="utf-8")}
    assert named == {"actors/engine.py"}
    assert f'os.environ["{INSECURE}"] = "0"' in (ROOT / "actors" / "engine.py").read_text(encoding="utf-8")
    elsewhere = [*(ROOT / "recipes").rglob("*.toml"), *(ROOT / "docker").iterdir(), ROOT / "Makefile"]
    assert not [path for path in elsewhere if INSECURE in path.read_text(encoding="utf-8")]


def test_the_tests_that_security_md_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
