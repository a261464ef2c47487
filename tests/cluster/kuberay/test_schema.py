"""What is rendered, against the schema that KubeRay 1.7 gives its RayJob: unknown fields are errors here.

The schema is not part of this repository. It also holds those of the parts of a pod, of a claim and of a network
policy's rules, so these are checked by it too; of config maps, monitors and alerts no schema was at hand. Rules that
are written in CEL are not evaluated; those that concern a run are rules of `cluster.kuberay.rules` too.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema")

Tree = dict[str, Any]
BESIDE = Path(__file__).resolve().parents[4] / "shared" / "data" / "kuberay-v1.7.0"
FOLDER = Path(os.environ.get("SPEECHSUM_KUBERAY_SCHEMAS", BESIDE))


def strict(schema: Any) -> Any:
    """The schema with every field that it does not list refused, where an API server would drop it without a word."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return closed


@pytest.fixture(scope="module")
def schema() -> Tree:
    path = FOLDER / "rayjob.v1.schema.json"
    if not path.is_file():
        pytest.skip(f"no {path}: set SPEECHSUM_KUBERAY_SCHEMAS to the folder with KubeRay's schemas")
    return strict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def validator(schema: Tree):
    return jsonschema.Draft202012Validator(schema)


def within(schema: Tree, path: str):
    """A validator of the part of the schema at `path`; a dot goes to a field, and from a list to its items."""
    for part in path.split("."):
        schema = schema.get("items", schema)["properties"][part]
    return jsonschema.Draft202012Validator(schema)


def errors(validator, job: Tree) -> list[str]:
    return ["/".join(map(str, e.absolute_path)) + f": {e.message}" for e in validator.iter_errors(job)]


@pytest.mark.parametrize("queue", [None, {"kind": "volcano", "name": "q"}, {"kind": "kueue", "name": "q"},
                                   {"kind": "kueue", "name": "q", "elastic": True}], ids=str)  # fmt: skip
def test_what_is_rendered_is_valid(validator, pair, rendered, queue: Tree | None) -> None:
    job = rendered(*pair, **({} if queue is None else {"queue": queue}))["RayJob"]
    assert errors(validator, job) == []


def test_a_bucket_is_valid_too(validator, gke, rendered) -> None:
    job = rendered(*gke, storage={"bucket": "gs://runs"}, service_account="trainer", image_pull_secret="pull")["RayJob"]
    assert errors(validator, job) == []


def test_claim_and_network_policy_are_valid(schema: Tree, pair, rendered) -> None:
    found = rendered(*pair)
    policy = found["NetworkPolicy"]["spec"]
    claim = "spec.rayClusterSpec.headGroupSpec.template.spec.volumes.ephemeral.volumeClaimTemplate.spec"
    assert errors(within(schema, claim), found["PersistentVolumeClaim"]["spec"]) == []
    assert errors(within(schema, "spec.rayClusterSpec.networkPolicy.head.ingressRules"), policy["ingress"]) == []
    assert errors(within(schema, "spec.rayClusterSpec.networkPolicy.head.egressRules"), policy["egress"]) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resourcs", {}, "'resourcs' was unexpected"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.maxReplica", 3, "'maxReplica' was unexpected"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.maxReplicas", "3", "'3' is not of type 'integer'"),
        ("spec.rayClusterSpec.autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("spec.submitterPodTemplate.spec.containers.0.resources.limits.memory", "1 GB", "does not match"),
        ("spec.submitterPodTemplate.spec.volumes.0.emptyDir.size", "1Gi", "'size' was unexpected"),
        ("spec.deletionStrategy.deletionRules.0.policy", "DeleteAll", "'DeleteAll' is not one of"),
    ],
)
def test_a_mistake_is_found(validator, gke, rendered, path: str, value: Any, words: str) -> None:
    job = copy.deepcopy(rendered(*gke)["RayJob"])
    *parents, leaf = path.split(".")
    node: Any = job
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[leaf] = value
    found = errors(validator, job)
    assert len(found) == 1
    assert words in found[0]
