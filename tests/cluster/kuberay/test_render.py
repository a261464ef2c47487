"""The manifests of a run: who gets what, in every variant, and the same text each time."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kuberay.render import as_yaml, manifests, write
from speechsum import cli
from speechsum.config import load_recipe, parse
from speechsum.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
Tree = dict[str, Any]


def workers(job: Tree) -> dict[str, Tree]:
    return {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def pods(job: Tree) -> dict[str, Tree]:
    """Every pod's spec by role."""
    spec = job["spec"]
    heads = {"head": spec["rayClusterSpec"]["headGroupSpec"], "submitter": {"template": spec["submitterPodTemplate"]}}
    return {role: group["template"]["spec"] for role, group in (heads | workers(job)).items()}


def mounts(pod: Tree) -> dict[str, Tree]:
    return {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}


def size(group: Tree) -> tuple[int, int, int]:
    return group["minReplicas"], group["replicas"], group["maxReplicas"]


def test_learner_stays_and_the_others_come_and_go(gke, rendered) -> None:
    job = rendered(*gke)["RayJob"]
    groups = workers(job)
    assert {name: size(group) for name, group in groups.items()} == {
        "learner": (1, 1, 1), "rollout": (0, 0, 16), "judge": (0, 0, 4),
    }  # fmt: skip
    assert [group["labels"]["ray.io/market-type"] for group in groups.values()] == ["on-demand", "spot", "on-demand"]
    assert [group.get("idleTimeoutSeconds") for group in groups.values()] == [None, 300, 600]
    assert groups["rollout"]["resources"] == {"CPU": "8", "GPU": "1", "rollout": "1"}
    assert groups["judge"]["resources"] == {"CPU": "2", "judge": "2"}
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["resources"] == {"CPU": "0", "driver": "1"}
    assert job["spec"]["entrypointResources"] == '{"driver": 1}'


def test_the_run_folder_is_writable_where_it_is_written(gke, rendered) -> None:
    found = {role: mounts(pod) for role, pod in pods(rendered(*gke)["RayJob"]).items()}
    assert {role for role, at in found.items() if "/runs" in at} == {"head", "learner"}
    assert {role for role, at in found.items() if "/data/meetings" in at} == {"head", "learner", "rollout", "judge"}
    assert all(at["/data/meetings"]["readOnly"] for role, at in found.items() if role != "submitter")
    assert {role for role, at in found.items() if "/etc/speechsum" in at} == {"head"}


def test_what_the_driver_assembles_the_others_read(kind, rendered) -> None:
    found = {role: mounts(pod) for role, pod in pods(rendered(*kind)["RayJob"]).items()}
    cache = "/home/speechsum/.cache/speechsum"
    assert "readOnly" not in found["head"][cache]
    assert all(found[role][cache]["readOnly"] for role in ("learner", "rollout", "judge"))
    assert all(found[role][cache]["subPath"] == "cache" for role in ("head", "learner", "rollout", "judge"))


def test_only_the_head_may_speak_to_kubernetes(pair, rendered) -> None:
    for role, pod in pods(rendered(*pair)["RayJob"]).items():
        assert pod["automountServiceAccountToken"] == (role == "head")


def test_secrets_are_named_and_never_written(gke, rendered) -> None:
    found = {
        role: [v for v in pod["containers"][0].get("env", []) if v["name"] == "SPEECHSUM_JUDGE_API_KEY"]
        for role, pod in pods(rendered(*gke)["RayJob"]).items()
    }
    assert {role for role, variables in found.items() if variables} == {"head", "judge"}
    assert found["judge"][0] == {
        "name": "SPEECHSUM_JUDGE_API_KEY", "valueFrom": {"secretKeyRef": {"name": "speechsum-judge", "key": "api-key"}},
    }  # fmt: skip


def test_the_recipe_is_resolved_and_placed(gke, rendered) -> None:
    text = rendered(*gke)["ConfigMap"]["data"]["recipe.toml"]
    config = parse(tomllib.loads(text), "map")
    assert config.rollout.resources == {"rollout": 1.0}
    assert config.model_copy(
        update={role: getattr(gke[0], role) for role in ("learner", "rollout", "judge")}
    ) == gke[0]  # fmt: skip


def test_the_plain_job_deletes_by_rules(gke, rendered) -> None:
    job = rendered(*gke)["RayJob"]
    assert "suspend" not in job["spec"]
    assert "shutdownAfterJobFinishes" not in job["spec"]
    rules = job["spec"]["deletionStrategy"]["deletionRules"]
    assert [(rule["policy"], rule["condition"]["ttlSeconds"]) for rule in rules] == [
        ("DeleteCluster", 300), ("DeleteCluster", 3600), ("DeleteCluster", 3600), ("DeleteSelf", 86_400),
    ]  # fmt: skip


def test_kueue_is_asked_for_all_at_once(kueue, rendered) -> None:
    job = rendered(*kueue)["RayJob"]
    spec = job["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "speechsum"
    assert (spec["suspend"], spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, True, 300)
    assert "deletionStrategy" not in spec
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec["rayClusterSpec"]
    # 4 actors, 4 to a pod; 2 judges, 2 to a pod
    assert {name: size(group) for name, group in workers(job).items()} == {
        "learner": (1, 1, 1), "rollout": (1, 1, 1), "judge": (1, 1, 1),
    }  # fmt: skip


def test_kueue_lets_an_elastic_run_scale(kueue, rendered) -> None:
    job = rendered(*kueue, queue={"kind": "kueue", "name": "q", "elastic": True})["RayJob"]
    assert job["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert size(workers(job)["rollout"]) == (0, 0, 4)


def test_volcano_is_given_its_queue_and_rollouts_may_come_later(gke, rendered) -> None:
    job = rendered(*gke, queue={"kind": "volcano", "name": "q"})["RayJob"]
    assert job["metadata"]["labels"]["volcano.sh/queue-name"] == "q"
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert "deletionStrategy" in job["spec"]


def test_a_bucket_takes_the_place_of_the_claim(gke, rendered) -> None:
    found = rendered(*gke, storage={"bucket": "gs://runs"}, service_account="trainer")
    assert "PersistentVolumeClaim" not in found
    specs = pods(found["RayJob"])
    [runs] = [volume for volume in specs["learner"]["volumes"] if volume["name"] == "runs"]
    assert runs["csi"]["volumeAttributes"]["bucketName"] == "runs"
    assert "rename-dir-limit=1000" in runs["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert specs["head"]["serviceAccountName"] == "trainer"
    learner = workers(found["RayJob"])["learner"]["template"]["metadata"]
    assert learner["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_who_may_reach_the_pods(gke, rendered) -> None:
    policy = rendered(*gke)["NetworkPolicy"]["spec"]
    inside, operator, scraper = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert [port["port"] for port in scraper["ports"]] == [8080, 44217, 44227]
    outside = {port["port"] for rule in policy["egress"] if "to" not in rule for port in rule["ports"]}
    assert outside == {53, 443, 6443, 8000}  # the last is the judge's
    labels = policy["podSelector"]["matchLabels"].items()
    job = rendered(*gke)["RayJob"]
    templates = [job["spec"]["submitterPodTemplate"], job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]]
    templates += [group["template"] for group in workers(job).values()]
    assert all(labels <= template["metadata"]["labels"].items() for template in templates)


@pytest.mark.parametrize(("url", "port"), [("https://judge/v1", 443), ("http://judge/v1", 80), ("http://j:9/v1", 9)])
def test_the_judges_port_is_open(gke, rendered, url: str, port: int) -> None:
    config = load_recipe(ROOT / "recipes" / "qwen2.5-omni-3b.toml", [f'judge.endpoint.url="{url}"'])
    network = {"egress_ports": [6443]}
    policy = rendered(config, gke[1], network=network)["NetworkPolicy"]["spec"]
    assert [p["port"] for p in policy["egress"][-1]["ports"]] == sorted({6443, port})


def test_so_is_that_of_the_judge_of_evaluations(gke, rendered) -> None:
    second = "eval.second_judge={ kind = 'rubric', endpoint = { url = 'http://second:9/v1', model = 'big' } }"
    config = load_recipe(ROOT / "recipes" / "qwen2.5-omni-3b.toml", [second])
    policy = rendered(config, gke[1], network={"egress_ports": [6443]})["NetworkPolicy"]["spec"]
    assert [p["port"] for p in policy["egress"][-1]["ports"]] == [9, 6443, 8000]


def test_yaml_says_what_the_types_say_and_always_the_same(pair) -> None:
    first = [as_yaml(manifest) for manifest in manifests(*pair)]
    assert first == [as_yaml(manifest) for manifest in manifests(*pair)]
    assert [yaml.safe_load(text) for text in first] == [manifest.tree() for manifest in manifests(*pair)]
    assert all(text.startswith("apiVersion: ") and "&id" not in text for text in first)
    assert yaml.safe_load(first[-1])["kind"] == "RayJob"


def test_files_are_numbered_and_strangers_told_apart(kind, tmp_path: Path) -> None:
    found = manifests(*kind)
    paths = write(found, tmp_path / "out")
    assert [path.name for path in paths] == [
        "00-configmap-demo-recipe.yaml",
        "01-persistentvolumeclaim-demo-runs.yaml",
        "02-networkpolicy-demo-network.yaml",
        "03-rayjob-demo.yaml",
    ]
    assert write(found, tmp_path / "out") == paths
    (tmp_path / "out" / "04-other.yaml").touch()
    with pytest.raises(UserError, match=r"holds 04-other\.yaml, which .* would apply too"):
        write(found, tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["k8s", "render", str(ROOT / "recipes/demo.toml"), "--profile", str(ROOT / "recipes/profiles/kind.toml")]
    assert cli.main([*words, "-o", "name=other"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [d["metadata"]["name"] for d in documents] == ["other-recipe", "other-runs", "other-network", "other"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [Path(line) for line in printed] == sorted((tmp_path / "out").iterdir())
    assert cli.main([*words, "-o", "rollout.actors=2"]) == 2
    assert "need 2 pods" in capsys.readouterr().err
