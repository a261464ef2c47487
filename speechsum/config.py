"""A recipe: one TOML file that says everything about a run.

Import-light on purpose (pydantic only), so that `speechsum train --help` and a recipe check cost nothing. Every
model is frozen and refuses keys it does not know; the message names the key, the nearest known one and the file.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from speechsum.errors import UserError
from speechsum.objectives import DpoLoss, Loss, OpdLoss
from speechsum.precision import Precision
from speechsum.section import Fraction, NonNegative, Positive, Resources, Section
from speechsum.stages import StageKind, kind_of

STARTER = "starter"
TEXT_MODE, CASCADE, TEACHER, BASE = "text-mode", "cascade", "teacher", "base"
"""Rows of an evaluation beside those of checkpoints and stages; see `EvalConfig.rows`."""

EVALUATED = frozenset({"before", "after", TEXT_MODE, CASCADE, TEACHER, BASE})
"""What else a run's evaluations are called by, so that no stage is."""

STANDALONE = Path(__file__).with_name("standalone.toml")
"""The recipe of the commands that take none."""

SECRET_NAME = re.compile(r"key|token|secret|password|signature", re.IGNORECASE)
"""In the name of a query parameter: what it holds would have to be kept from others."""


UNSUPPORTED_FAMILIES = {
    "voxtral": (
        "vLLM 0.32 loads it in Mistral's own format alone (tekken.json, consolidated.safetensors, other names and "
        "another layout of q and k) and expects every audio token in the request, while transformers trains the "
        "Hugging Face format, so neither prompts nor pushes would agree"
    ),
}
"""Audio LLMs that cannot be trained with the libraries' present versions, and why not."""


S = TypeVar("S", bound=Section)

Decay = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class LoraConfig(Section):
    """Low-rank adapter on the language model's linear layers (Hu et al. 2021), trained in every stage."""

    rank: Positive = 16
    alpha: Positive = 32
    targets: Names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ModelConfig(Section):
    """The student. `path` is a local checkpoint folder, or `starter` for the small model the kit assembles.

    `adapter` names the weights to start from: for the starter `aligned`, `early` (an earlier stop of the same
    alignment), `terse` (aligned, then taught to say too little) or `none`; for any model also a safetensors file
    of one that this project exported.
    """

    path: str = STARTER
    family: Literal["audio_flamingo3", "granite_speech", "qwen2_5_omni", "qwen3_omni"] = "audio_flamingo3"
    adapter: str = "none"
    dtype: Precision = "auto"
    lora: LoraConfig = LoraConfig()
    train_projector: bool = True
    max_audio_s: Annotated[float, Field(gt=0)] = 30.0
    max_prompt_tokens: Positive = 1024

    @field_validator("family", mode="before")
    @classmethod
    def _can_be_trained(cls, name: Any) -> Any:
        if why := UNSUPPORTED_FAMILIES.get(str(name)):
            raise ValueError(f"model.family = {name!r} cannot be trained: {why}; choose another model")
        return name


class AugmentConfig(Section):
    """Train-time audio augmentation by torchaudio, in SFT stages only; all off by default.

    Ranges [low, high] that are drawn from uniformly: noise as dB of signal to noise, gain in dB.
    """

    noise_snr_db: tuple[float, float] | None = None
    gain_db: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _ranges_have_two_ends(self) -> Self:
        for name, bounds in (("noise_snr_db", self.noise_snr_db), ("gain_db", self.gain_db)):
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"data.augment.{name} = {list(bounds)} is no range; write [low, high]")
        return self


class SpeechConfig(Section):
    """How much starter speech to synthesise when `data.train` is `starter`.

    `terse` is the share of training references that tell the first fact only, as a hurried writer's would; the
    references of held-out speech are always whole. `held_out_requests` are asked of held-out speech besides, out of
    the kinds that training never asks: `json`, `two_bullets`, `limit`.
    """

    train_clips: Positive = 256
    eval_clips: Positive = 48
    requests: tuple[str, ...] = ("sentence", "bullets", "task", "keywords")
    held_out_requests: tuple[Literal["json", "two_bullets", "limit"], ...] = ()
    terse: Fraction = 0.0
    workers: Positive = 2


class DataConfig(Section):
    """Manifests (Parquet or JSONL), or `starter` for the kit's synthetic speech. `root` bounds every audio path."""

    train: str = STARTER
    eval: str = STARTER
    root: str | None = None
    speech: SpeechConfig = SpeechConfig()
    augment: AugmentConfig = AugmentConfig()


class EngineConfig(Section):
    """vLLM settings shared by rollout and judge engines; the engine file adds what the device needs."""

    threads: Positive = 2
    max_model_len: Positive = 1280
    max_num_seqs: Positive = 128
    kv_cache_gb: Annotated[float, Field(gt=0)] = 0.5
    gpu_memory_utilization: Fraction = 0.85
    enforce_eager: bool = True


class PoolConfig(Section):
    """How far a pool may grow and shrink while it works, and when: see `cluster.sizing`.

    The pool has as many actors as the requests at hand need to be answered within `target_s` seconds, at the rate that
    was measured of one actor, but at least `min` and at most `max`. It grows at once, and shrinks to the largest number
    needed in the last `idle_s` seconds. A synchronous stage asks nothing while the learner works, so let `idle_s` be
    longer than a step.
    """

    min: Positive = 1
    max: Positive
    target_s: Annotated[float, Field(gt=0)] = 60.0
    idle_s: Annotated[float, Field(gt=0)] = 300.0


class PooledSection(Section):
    """Actors of one kind. They are `actors` throughout a run or, with a `pool`, that many at its start.

    One that has not answered a call within `call_timeout_s` seconds is taken to hang: it is killed, and what it was at
    goes to another; with rollout.sync `nccl` or `ipc` that ends the run. A call of more than 64 completions (one of
    evaluation, say) has more time in proportion. Rollout's time-out is that of a cascade's recognisers too, for whom
    a recording counts as 8 completions.
    """

    actors: Positive = 1
    pool: PoolConfig | None = None
    call_timeout_s: Annotated[float, Field(gt=0)] = 1800.0

    @property
    def bounds(self) -> PoolConfig:
        """How many actors there may be; without a pool always the same number."""
        return self.pool or PoolConfig(min=self.actors, max=self.actors)


class RolloutConfig(PooledSection):
    """Rollout actors. Temperature and nucleus are those the learner's importance ratios are computed under.

    `sync` is what travels to them after a step, and how: `adapter` (projector and LoRA) or `full` (every tensor)
    through Ray's object store, `nccl` or `ipc` (every tensor) from GPU to GPU by vLLM's own engines. `ipc` is for a
    learner and rollout actors that share GPUs, `nccl` for those that do not; neither has been run on a GPU.
    """

    prompts_per_request: Positive = 8
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 48
    gpus_per_actor: NonNegative = 0
    resources: Resources = Field(default_factory=dict)
    sync: Literal["adapter", "full", "nccl", "ipc"] = "adapter"
    engine: EngineConfig = EngineConfig()

    @property
    def backend(self) -> str:
        """vLLM's name for the weight-transfer backend that `sync` uses."""
        return self.sync if self.sync in ("nccl", "ipc") else "object_store"

    @model_validator(mode="after")
    def _sampled_distribution_is_the_trained_one(self) -> Self:
        if self.top_p < 1.0:
            raise ValueError(
                "rollout.top_p < 1 makes sampled log-probs differ from the learner's distribution; "
                "set it to 1.0 and lower rollout.temperature instead"
            )
        return self

    @model_validator(mode="after")
    def _latecomers_can_have_the_weights(self) -> Self:
        if self.pool and self.backend != "object_store":
            raise ValueError(
                f"rollout.sync = {self.sync!r} reaches the actors of the start only; "
                "set rollout.sync to 'adapter' or 'full', or remove rollout.pool"
            )
        return self


class EndpointConfig(Section):
    """An OpenAI-compatible endpoint. The key is read from the environment variable `api_key_env`, never stored.

    `revision` says what the model's name does not, such as the commit of the weights that a server of your own calls
    `judge`: scores compare, and the cache answers, only within one. Within a minute at most `retry_share` of the
    requests are retries (and at least `retries * concurrency` may be). After `circuit_after` calls in a row that
    reached no working server none goes out for `circuit_cooldown_s` seconds; then one does, to see. The others wait for
    a server that restarts, `circuit_cooldown_s` and `timeout_s` together, before they fail.
    `top_logprobs` is how many log-probs a rubric judge asks for in the place of each token, to know how sure its marks
    are; 0 is for a server that refuses to be asked.
    """

    url: str = ""
    model: str = ""
    revision: str = ""
    api_key_env: str = "SPEECHSUM_JUDGE_API_KEY"
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 2
    retry_share: Fraction = 0.2
    concurrency: Positive = 16
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 5
    circuit_after: Positive = 8
    circuit_cooldown_s: Annotated[float, Field(gt=0)] = 30.0

    @field_validator("url")
    @classmethod
    def _address_holds_no_secret(cls, url: str) -> str:
        """A recipe is kept beside the run and shown with the job. The message does not repeat what it found."""
        remedy = "put the key in the variable that its api_key_env names"
        address, _, query = url.partition("?")
        if "@" in address:
            raise ValueError(f"the endpoint's url carries a user name or password; {remedy}")
        for name, _ in parse_qsl(query):
            if SECRET_NAME.search(name):
                raise ValueError(f"the endpoint's url carries {name!r}; {remedy}")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str) -> str:
        """A key written here by mistake would be kept; so it is not repeated either."""
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError(
                "the endpoint's api_key_env is the name of an environment variable, in capitals, and never the key "
                "itself; export the key under such a name"
            )
        return name

    @property
    def revised_model(self) -> str:
        """The model's name with its revision, as a judge's version has them."""
        return f"{self.model}@{self.revision}" if self.revision else self.model


class AuditConfig(Section):
    """Whether the judge can be trusted, asked before step 0 and after every `every` steps of the run (0: not again).

    And on --resume, where the last audit was of another judge, misses a target or is `every` steps old.

    True summaries of `clips` held-out clips (0: no audit) against texts made wrong on purpose. Below `min_spearman`
    (rank correlation with known corruption) or `min_win_rate` (of the kind of canary that is beaten least often) the
    run does not start, or ends with a checkpoint, and so it does where words to the judge raise a reward; without
    `enforce` it says so and goes on.
    """

    clips: Annotated[int, Field(ge=0)] = 24
    min_spearman: Annotated[float, Field(ge=-1, le=1)] = 0.85
    min_win_rate: Fraction = 0.9
    every: Annotated[int, Field(ge=0)] = 0
    enforce: bool = True


class JudgeConfig(PooledSection):
    """Who scores. `likelihood` needs any small causal LM (`path`), `rubric` and `pairwise` an endpoint.

    With `path = "teacher"` the model is the teacher's. In a run whose stages ask a teacher the judge then has no engine
    of its own, and `gpus_per_actor` can stay 0: it asks the teacher's actors.
    `pairwise` compares two summaries, so it serves `dpo` stages, and neither `grpo` nor evaluation: that is then up
    to `eval.second_judge` alone.
    `cache` is a file on the disk of each machine that judges, such as `"~/.cache/speechsum/judgements.sqlite"`: what
    was judged once is not asked again, in later runs too. Empty, nothing is kept.
    Above `max_failure_share` of failed judgements in `failure_window` the run stops with the reason.
    """

    kind: Literal["likelihood", "rubric", "pairwise", "lexical"] = "likelihood"
    path: str = STARTER
    gpus_per_actor: NonNegative = 0
    resources: Resources = Field(default_factory=dict)
    endpoint: EndpointConfig = EndpointConfig()
    engine: EngineConfig = EngineConfig()
    cache: str = ""
    max_failure_share: Fraction = 0.2
    failure_window: Positive = 200
    audit: AuditConfig | None = None

    @property
    def asks_endpoint(self) -> bool:
        """Whether `endpoint` matters."""
        return self.kind in ("rubric", "pairwise")

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> Self:
        if self.asks_endpoint and not (self.endpoint.url and self.endpoint.model):
            raise ValueError(f"judge.kind = {self.kind!r} needs judge.endpoint.url and judge.endpoint.model")
        return self

    @model_validator(mode="after")
    def _cache_is_the_same_file_for_every_actor(self) -> Self:
        if self.cache and not self.cache.startswith(("/", "~/")):
            raise ValueError(
                f"judge.cache = {self.cache!r} depends on the folder a process was started in; "
                "write a path that begins with / or ~/"
            )
        return self


class TeacherConfig(Section):
    """A text model that reads the transcript. `path` is a checkpoint folder, `starter` or empty for none.

    A starter's `adapter` is named as in `model.adapter`; `teacher` is the one that was raised on transcripts. Teacher
    and student have to share their token ids, which is checked before anything is trained. An actor that has not
    answered a call after `call_timeout_s` seconds (in proportion more for over 64 completions) ends the run, which goes
    on with --resume.
    """

    path: str = ""
    adapter: str = "none"
    dtype: Precision = "auto"
    actors: Positive = 1
    call_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    gpus_per_actor: NonNegative = 0
    resources: Resources = Field(default_factory=dict)
    engine: EngineConfig = EngineConfig()


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up, then constant or cosine."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    projector_lr: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class LearnerConfig(Section):
    """FSDP2 ranks. `microbatch_tokens` bounds the padded tokens of one forward on one rank.

    A rank that waits for another in a collective fails after `collective_timeout_s` seconds. Ranks that have not
    answered a call after `call_timeout_s` seconds end the run too, which goes on with --resume.
    """

    ranks: Positive = 2
    threads_per_rank: Positive = 1
    gpus_per_rank: NonNegative = 0
    resources: Resources = Field(default_factory=dict)
    backend: Literal["gloo", "nccl"] = "gloo"
    microbatch_tokens: Positive = 4096
    logprob_chunk: Positive = 1024
    activation_checkpointing: bool = False
    collective_timeout_s: Positive = 300
    call_timeout_s: Annotated[float, Field(gt=0)] = 1800.0


class StageConfig(Section):
    """One row of the stage table: where completions come from, who scores them, which loss reads them.

    `reads` is what the student is given: a recording, or (in an `sft` stage, to raise a text teacher) its transcript.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")]
    steps: Positive
    groups_per_step: Positive = 8
    group_size: Positive = 1
    max_staleness: Annotated[int, Field(ge=0)] = 0
    reads: Literal["audio", "transcript"] = "audio"
    loss: Annotated[Loss, Field(discriminator="kind")]
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_every: Positive = 50

    @property
    def kind(self) -> StageKind:
        """This stage's row of the table in `speechsum.stages`."""
        return kind_of(self.loss)

    @model_validator(mode="after")
    def _group_fits_the_loss(self) -> Self:
        if self.kind.completions != "rollout" and (self.group_size != 1 or self.max_staleness):
            raise ValueError(
                f"stage {self.name!r}: {self.loss.kind} trains on data here; set group_size = 1 and max_staleness = 0"
            )
        if "judge" in self.kind.scorers and self.group_size < 2:
            raise ValueError(
                f"stage {self.name!r}: {self.loss.kind} compares completions of one prompt; set group_size >= 2"
            )
        if self.reads == "transcript" and self.loss.kind != "sft":
            raise ValueError(f"stage {self.name!r}: only an sft stage reads transcripts; set reads = 'audio'")
        return self


class EvalConfig(Section):
    """Held-out evaluation, greedy.

    `controls` ask the same with somebody else's recording (`wrong_audio`) or silence (`no_audio`): a gain that
    survives them is not listening. `second_judge` scores evaluations only, so that training cannot learn to please it;
    its engine starts beside the others for each evaluation and ends with it.
    `rows` stand beside the checkpoints: the student reading the transcript (`text-mode`), a recogniser's transcript
    read by the teacher or, without one, by the student (`cascade`), the teacher reading the true one (`teacher`), and
    the student before training (`base`, which in a run is `before` and there anyway). `recogniser` is the folder of a
    Whisper checkpoint, or `starter` for the kit's whisper-tiny.en; the starter needs none named.
    """

    clips: Annotated[int, Field(ge=0)] = 48
    max_tokens: Positive = 48
    bootstrap: Positive = 2000
    controls: tuple[Literal["wrong_audio", "no_audio"], ...] = ("wrong_audio", "no_audio")
    second_judge: JudgeConfig | None = None
    rows: tuple[Literal["text-mode", "cascade", "teacher", "base"], ...] = ()
    recogniser: str = ""

    @model_validator(mode="after")
    def _second_judge_scores_one_at_a_time(self) -> Self:
        if self.second_judge and self.second_judge.kind == "pairwise":
            raise ValueError("eval.second_judge.kind = 'pairwise' gives no summary a score; set it to 'rubric'")
        return self


class PreflightConfig(Section):
    """Agreement of rollout and learner before step 0; beyond the limits the run is refused.

    `max_logprob_gap` is in nats per token, `min_greedy_equal` the share of tokens that both find likeliest: in bfloat16
    some near ties fall otherwise.
    """

    prompts: Positive = 4
    max_logprob_gap: Annotated[float, Field(gt=0)] = 0.03
    min_greedy_equal: Fraction = 0.5


class WatchConfig(Section):
    """Where people see the run. wandb writes offline unless told otherwise."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "speechsum"
    samples: Annotated[int, Field(ge=0)] = 8


class RunConfig(Section):
    """A whole recipe after overrides; saved as `config.json` beside the run."""

    name: Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0)] = 0
    keep_checkpoints: Positive = 2
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    judge: JudgeConfig = JudgeConfig()
    teacher: TeacherConfig = TeacherConfig()
    learner: LearnerConfig = LearnerConfig()
    stage: tuple[StageConfig, ...] = Field(min_length=1)
    eval: EvalConfig = EvalConfig()
    preflight: PreflightConfig = PreflightConfig()
    watch: WatchConfig = WatchConfig()

    @property
    def endpoints(self) -> tuple[EndpointConfig, ...]:
        """Of the judges that ask one: of training, then of evaluation alone."""
        judges = (self.judge, self.eval.second_judge)
        return tuple(judge.endpoint for judge in judges if judge and judge.asks_endpoint)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        names = [s.name for s in self.stage]
        if len(set(names)) != len(names) or EVALUATED & set(names):
            raise ValueError(f"stage names must differ, and none be one of {', '.join(sorted(EVALUATED))}; got {names}")
        if self.rollout.temperature == 0 and any(s.group_size > 1 for s in self.stage):
            raise ValueError("rollout.temperature = 0 makes all completions of a group alike; set it above 0")
        for stage in self.stage:
            self._check_teacher(stage)
            self._check_judge(stage)
        for key, judge in {"judge": self.judge, "eval.second_judge": self.eval.second_judge}.items():
            if judge and judge.kind == "likelihood" and judge.path == TEACHER and not self.teacher.path:
                raise ValueError(f"{key}.path = 'teacher' and the recipe has none; set teacher.path")
        if self.judge.kind == "pairwise" and self.eval.clips and not self.eval.second_judge:
            raise ValueError(
                "judge.kind = 'pairwise' gives no summary a score, which evaluation needs; give eval.second_judge, "
                "such as kind = 'rubric' with an endpoint, or set eval.clips = 0"
            )
        if (self.learner.backend == "nccl") != (self.learner.gpus_per_rank > 0):
            raise ValueError("learner.backend = 'nccl' goes with learner.gpus_per_rank > 0, 'gloo' with 0; change one")
        if self.rollout.backend != "object_store" and not (self.learner.gpus_per_rank and self.rollout.gpus_per_actor):
            raise ValueError(
                f"rollout.sync = {self.rollout.sync!r} goes from GPU to GPU; give learner.gpus_per_rank and "
                "rollout.gpus_per_actor a share, or set rollout.sync to 'adapter'"
            )
        longest = "rollout" if self.rollout.max_tokens >= self.eval.max_tokens else "eval"
        needed = self.model.max_prompt_tokens + max(self.rollout.max_tokens, self.eval.max_tokens)
        if needed > self.rollout.engine.max_model_len:
            raise ValueError(
                f"model.max_prompt_tokens + {longest}.max_tokens = {needed} exceeds rollout.engine.max_model_len = "
                f"{self.rollout.engine.max_model_len}; raise the latter or lower the former"
            )
        return self

    @model_validator(mode="after")
    def _pools_have_room(self) -> Self:
        second = {"eval.second_judge": self.eval.second_judge} if self.eval.second_judge else {}
        for role, chosen in {"rollout": self.rollout, "judge": self.judge, **second}.items():
            low, high = chosen.bounds.min, chosen.bounds.max
            if low > high:
                raise ValueError(f"{role}.pool.min = {low} exceeds {role}.pool.max = {high}; lower it")
            if not low <= chosen.actors <= high:
                raise ValueError(
                    f"{role}.actors = {chosen.actors} start the run, but {role}.pool holds {low} to {high}; "
                    f"set {role}.actors to {low}"
                )
        return self

    def _check_judge(self, stage: StageConfig) -> None:
        if self.judge.kind == "pairwise" and "judge" in stage.kind.scorers and not isinstance(stage.loss, DpoLoss):
            raise ValueError(
                f"stage {stage.name!r}: {stage.loss.kind} needs a reward for each completion, and judge.kind = "
                "'pairwise' compares two; set judge.kind to 'rubric', or the stage's loss.kind to 'dpo'"
            )

    def _check_teacher(self, stage: StageConfig) -> None:
        if "teacher" not in stage.kind.scorers:
            return
        if not self.teacher.path:
            raise ValueError(f"stage {stage.name!r} asks a teacher; set teacher.path to a checkpoint, or to 'starter'")
        by_token = not isinstance(stage.loss, OpdLoss) or stage.loss.divergence == "sampled_token"
        if by_token and self.rollout.temperature != 1.0:
            raise ValueError(
                f"stage {stage.name!r} compares the teacher's log-probs with the rollout's, which have to be of one "
                "temperature; set rollout.temperature = 1.0"
            )


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a TOML recipe, apply `section.key=value` overrides, validate.

    Raises `UserError` naming the file, the key and the remedy.
    """
    tree = read_toml(path, "recipe", Path("recipes/demo.toml"))
    for override in overrides or []:
        _apply(tree, override)
    return parse(tree, source=str(path))


def read_toml(path: str | Path, what: str, example: Path) -> dict[str, Any]:
    """The plain values of a TOML file. Raises `UserError` that calls the file a `what` and names an `example`."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}; `ls {example.parent}` shows those that come with speechsum") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a {what} file such as {example}") from None
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def parse(tree: dict[str, Any], source: str) -> RunConfig:
    """Validate a recipe's tree of plain values; `source` is named in the error."""
    return validated(RunConfig, tree, source)


def validated(section: type[S], tree: dict[str, Any], source: str) -> S:
    """A tree of plain values as a `section`. Raises `UserError` that names `source`, every bad key and the remedy."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        errors = [e for e in error.errors() if e["type"] != "too_short" or error.error_count() == 1]
        problems = "; ".join(_explain(e, section) for e in errors)
        raise UserError(f"{source}: {problems}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b.0.c=value` in place. The value is read as TOML and, where that fails, taken as a string."""
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise UserError(f"override {override!r} is not of the form section.key=value")
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for part in parents:
        node = _descend(node, part, override)
    value = _toml_value(text.strip())
    if isinstance(node, list):
        node[_index(node, leaf, override)] = value
    else:
        node[leaf] = value


def _descend(node: Any, part: str, override: str) -> Any:
    child = node[_index(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise UserError(f"override {override!r}: {part!r} is a value, not a section")
    return child


def _index(items: list[Any], part: str, override: str) -> int:
    """A list is addressed by position or, for stages, by name."""
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    for i, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return i
    raise UserError(f"override {override!r}: no entry {part!r}; there are {len(items)} (count from 0, or use a name)")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: Any, section: type[Section]) -> str:
    """One problem as a sentence: key, what is wrong, what would be right."""
    where = ".".join(str(p) for p in error["loc"] if p not in ("sft", "grpo", "opd", "dpo")) or "recipe"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _all_keys(section), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; remove it"
        return f"unknown key {where!r}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{where!r} is missing; add it"
    if error["type"] == "value_error":
        return message
    given = "" if _may_hold_a_secret(error) else f" = {json.dumps(error['input'], default=str)}"
    return f"{where!r}{given}: {message[0].lower()}{message[1:]}"


def _may_hold_a_secret(error: Any) -> bool:
    """What an endpoint is given, and what stands in the place of a whole section."""
    return "endpoint" in error["loc"] or error["type"] == "model_type"


def _all_keys(section: type[Section]) -> list[str]:
    """Every key that the section or any section below it knows, for spelling hints."""
    pending: list[Any] = [section]
    seen: dict[type[BaseModel], None] = {}
    while pending:
        annotation = pending.pop()
        pending += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
            seen[annotation] = None
            pending += [info.annotation for info in annotation.model_fields.values()]
    return sorted({key for known in seen for key in known.model_fields})
