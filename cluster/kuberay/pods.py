"""The pods of a run: one template for each role, alike in everything but size, place and volumes."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.kuberay.objects import (
    ClaimSource,
    ConfigMapSource,
    Container,
    ContainerPort,
    CsiSource,
    EmptyDir,
    EnvVar,
    Metadata,
    Mount,
    Named,
    PodSecurity,
    PodSpec,
    PodTemplate,
    Resources,
    SecretKey,
    Toleration,
    ValueFrom,
    Volume,
)
from cluster.kuberay.profile import ClusterProfile, PodConfig

HOME = "/home/speechsum"
CACHE = f"{HOME}/.cache/speechsum"
RECIPE_FOLDER = "/etc/speechsum"
RUNS = "/runs"

HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265}
METRICS_PORTS = {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}
"""Ray's own, its autoscaler's and its dashboard's; the last two are the head's alone."""

GRACE_VARIABLE = {"head": "RAY_JOB_STOP_WAIT_TIME_S", "worker": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}
"""What Ray reads for the seconds between a notice and the end: of the driver on the head, of calls on a worker."""

SCRATCH = (Mount(name="tmp", mount_path="/tmp"), Mount(name="ray", mount_path="/tmp/ray"))
SUBMITTER = PodConfig(cpus=1, memory="1Gi", shm="64Mi")


def labels(name: str, component: str | None = None) -> dict[str, str]:
    """What marks the run's objects and pods; policies and monitors select by them."""
    marks = {"app.kubernetes.io/name": "speechsum", "app.kubernetes.io/instance": name}
    return marks | ({"app.kubernetes.io/component": component} if component else {})


@dataclass(frozen=True)
class Pods:
    """Makes the templates of the run `name`. `shared_cache` is for recipes whose model is assembled on first use."""

    name: str
    profile: ClusterProfile
    shared_cache: bool

    def head(self) -> PodTemplate:
        """Ray's control and the driver: the one pod that may speak to Kubernetes, for its autoscaler's sake."""
        drain = self.profile.drain
        env = (EnvVar(name=GRACE_VARIABLE["head"], value=str(drain.driver_s)), *self._secrets("head"))
        return self._template("head", self.profile.head, env, HEAD_PORTS | METRICS_PORTS, drain.driver_s)

    def worker(self, role: str) -> PodTemplate:
        """The pods of one group."""
        drain, ports = self.profile.drain, {"metrics": METRICS_PORTS["metrics"]}
        env = (EnvVar(name=GRACE_VARIABLE["worker"], value=str(drain.worker_s)), *self._secrets(role))
        return self._template(role, getattr(self.profile, role), env, ports, drain.worker_s)

    def submitter(self) -> PodTemplate:
        """The pod that hands the job to the head and follows its log; KubeRay fills in the command."""
        return self._template("submitter", SUBMITTER, (), {}, 0)

    def _template(
        self, role: str, pod: PodConfig, env: tuple[EnvVar, ...], ports: dict[str, int], drain_s: int
    ) -> PodTemplate:
        profile = self.profile
        container = Container(
            name="ray-job-submitter" if role == "submitter" else f"ray-{'head' if role == 'head' else 'worker'}",
            image=profile.image,
            env=env or None,
            ports=tuple(ContainerPort(name=name, container_port=port) for name, port in ports.items()) or None,
            resources=Resources.fixed(self._amounts(pod)),
            volume_mounts=self._mounts(role),
        )
        in_bucket = profile.storage.bucket is not None and role in ("head", "learner")
        return PodTemplate(
            metadata=Metadata(
                labels=labels(self.name, role), annotations={"gke-gcsfuse/volumes": "true"} if in_bucket else None
            ),
            spec=PodSpec(
                termination_grace_period_seconds=drain_s + profile.drain.margin_s,
                service_account_name=None if role == "submitter" else profile.service_account,
                automount_service_account_token=role == "head",
                image_pull_secrets=(Named(name=profile.image_pull_secret),) if profile.image_pull_secret else None,
                node_selector=pod.node_selector or None,
                tolerations=tuple(
                    Toleration(key=t.key, operator="Equal" if t.value else "Exists", value=t.value, effect=t.effect)
                    for t in pod.tolerations
                )
                or None,
                security_context=PodSecurity(
                    run_as_user=profile.user, run_as_group=profile.user, fs_group=profile.user
                ),
                containers=(container,),
                volumes=self._volumes(role, pod),
            ),
        )

    def _amounts(self, pod: PodConfig) -> dict[str, str]:
        gpus = {self.profile.gpu_resource: str(pod.gpus)} if pod.gpus else {}
        return {"cpu": str(pod.cpus), "memory": pod.memory} | gpus

    def _secrets(self, role: str) -> tuple[EnvVar, ...]:
        return tuple(
            EnvVar(name=s.env, value_from=ValueFrom(secret_key_ref=SecretKey(name=s.name, key=s.key)))
            for s in self.profile.secrets
            if role in s.pods
        )

    def _mounts(self, role: str) -> tuple[Mount, ...]:
        """Only head and learner get the run folder: the others have nothing to write there."""
        mounts = [*SCRATCH, Mount(name="home", mount_path=HOME), Mount(name="shm", mount_path="/dev/shm")]
        if role == "submitter":
            return tuple(mounts)
        if role == "head":
            mounts.append(Mount(name="recipe", mount_path=RECIPE_FOLDER, read_only=True))
        if role in ("head", "learner"):
            mounts.append(Mount(name="runs", mount_path=RUNS))
        if self.shared_cache:
            read_only = None if role == "head" else True  # the driver assembles what the others load
            mounts.append(Mount(name="runs", mount_path=CACHE, sub_path="cache", read_only=read_only))
        mounts += [Mount(name=m.name, mount_path=m.path, read_only=True) for m in self.profile.mounts]
        return tuple(mounts)

    def _volumes(self, role: str, pod: PodConfig) -> tuple[Volume, ...]:
        """A volume for every mount."""
        sources = [
            Volume(name="tmp", empty_dir=EmptyDir()),
            Volume(name="ray", empty_dir=EmptyDir()),
            Volume(name="home", empty_dir=EmptyDir()),
            Volume(name="shm", empty_dir=EmptyDir(medium="Memory", size_limit=pod.shm)),
            Volume(name="recipe", config_map=ConfigMapSource(name=f"{self.name}-recipe")),
            self._run_volume(),
            *(
                Volume(name=m.name, persistent_volume_claim=ClaimSource(claim_name=m.claim, read_only=True))
                for m in self.profile.mounts
            ),
        ]
        wanted = {mount.name for mount in self._mounts(role)}
        return tuple(volume for volume in sources if volume.name in wanted)

    def _run_volume(self) -> Volume:
        profile = self.profile
        if profile.storage.bucket is None:
            return Volume(name="runs", persistent_volume_claim=ClaimSource(claim_name=f"{self.name}-runs"))
        owner = f"uid={profile.user},gid={profile.user}"
        attributes = {
            "bucketName": profile.storage.bucket.removeprefix("gs://"),
            # a checkpoint is finished by renaming its folder, which the driver refuses by default
            "mountOptions": f"implicit-dirs,rename-dir-limit=1000,{owner}",
        }
        return Volume(name="runs", csi=CsiSource(driver="gcsfuse.csi.storage.gke.io", volume_attributes=attributes))
