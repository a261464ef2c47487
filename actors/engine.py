"""The file through which all reach vLLM: generation, likelihoods and weight updates behind one small class.

The engine runs in the calling process (no engine-core subprocess): a Ray actor already is a process of its own, a
push then hands tensors over by reference, and the engine loads in seconds. Import this file before torch: the
environment that OpenMP and vLLM read once is set at the top.
"""

from __future__ import annotations

import os


def set_environment() -> None:
    """Everything vLLM and OpenMP read from the environment; values the user has set win where they are a choice.

    Passive waiting matters: OpenMP workers that spin starve every other process on the machine by a factor of ten.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    for name, value in {
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",  # at WARNING it speaks of every layer that a push leaves as it is
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "lo",  # the engine is one process and meets nobody, yet gloo would listen to the network
    }.items():
        os.environ.setdefault(name, value)


set_environment()

# ruff: noqa: E402
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from vllm import LLM
from vllm import SamplingParams as VllmSamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform

from actors.hearing import register_models
from speechsum.audio import SAMPLE_RATE
from speechsum.config import EngineConfig
from speechsum.errors import RunError, UserError
from speechsum.lora import adapted_weights, merge, pair_names, whole_tensors
from speechsum.precision import Precision, resolved
from speechsum.prompting import load_tokenizer
from speechsum.types import FinishReason, SamplingParams, TeacherLogprobs, read_only
from speechsum.weights import WeightsPayload, WeightsRefused, to_torch

OBJECT_STORE = "object_store"
KV_BLOCK = 32
CPU_PREFILL_TOKENS = 2048
MEL_CACHE_GB = 0.25
HEARS_ONLY = {"audio": 1, "image": 0, "video": 0}


class EngineBroken(RunError):
    """A weight update failed half-way; the engine holds no usable weights and must be started again."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt. `prompt_ids` holds one audio placeholder where `samples` (mono float32 at 16 kHz) is given."""

    prompt_ids: Sequence[int]
    samples: np.ndarray | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One completion: `token_ids` [R] int32 with the end token, `logprobs` [R] float32 of the sampled distribution."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What the engine made of one request. `prompt_ids` [P] int32 has every placeholder expanded."""

    prompt_ids: np.ndarray
    samples: tuple[EngineSample, ...]


@dataclass(frozen=True, slots=True)
class EngineRefusal:
    """A request the engine would not take (too long, audio too short); the others of its batch are served."""

    reason: str


class Engine:
    """`vllm.LLM` with the settings reinforcement learning needs.

    Prefix caching is on (the G samples of a prompt share its key-value blocks) and log-probabilities are of the
    distribution after temperature, so an importance ratio of an unchanged policy is one. `receives` names the vLLM
    weight-transfer backend that updates come by: `object_store`, `nccl` or `ipc`; None for weights that stay.
    `top_logprobs` is the most that `candidates` will be asked for.
    """

    def __init__(
        self,
        path: str | Path,
        config: EngineConfig,
        *,
        dtype: Precision = "auto",
        audio: bool = True,
        receives: str | None = None,
        top_logprobs: int = 0,
        seed: int = 0,
    ) -> None:
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"no checkpoint at {path}: config.json is missing; name a folder in Hugging Face format")
        _use_threads(config.threads)
        self.path = Path(path)
        arguments = _engine_arguments(self.path, config, dtype, audio, receives, seed)
        if top_logprobs:
            arguments["max_logprobs"] = top_logprobs
        self._llm = LLM(**arguments)
        self._broken = ""
        self._tokenizer = load_tokenizer(self.path)
        if receives == OBJECT_STORE:
            self.join_transfer({})

    @property
    def max_model_len(self) -> int:
        """Most tokens a prompt and its completion may have together."""
        return int(self._llm.model_config.max_model_len)

    @property
    def vocab_size(self) -> int:
        """How many token ids the model has embeddings for."""
        return int(self._llm.model_config.get_vocab_size())

    @property
    def dtype(self) -> str:
        """What the model computes in: `bfloat16` or `float32`."""
        return str(self._llm.model_config.dtype).removeprefix("torch.")

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's Hugging Face tokenizer."""
        return self._tokenizer

    def generate(
        self, requests: Sequence[EngineRequest], sampling: SamplingParams
    ) -> list[EngineOutput | EngineRefusal]:
        """`sampling.n` completions of every request, in order, in one engine call."""
        self._refuse_if_broken()
        refusals = [self._enqueue(_prompt(r), _sampling(sampling, r.seed)) for r in requests]
        served = iter(self._llm.wait_for_completion(RequestOutput, use_tqdm=False))
        return [refusal or self._output(next(served)) for refusal in refusals]

    def bare_generate(self, requests: Sequence[EngineRequest], sampling: SamplingParams) -> int:
        """Tokens made by `vllm.LLM.generate` as vLLM's users call it, for benchmarks: the bar the rest is held to."""
        params = [_sampling(sampling, r.seed) for r in requests]
        for each in params:
            each.detokenize = True
        outputs = self._llm.generate([_prompt(r) for r in requests], params, use_tqdm=False)
        return sum(len(o.token_ids) for out in outputs for o in out.outputs)

    def prompt_logprobs(self, token_ids: Sequence[Sequence[int]], first: Sequence[int]) -> list[np.ndarray]:
        """Log-probability of each prompt's own tokens from position `first[i]` >= 1 on: float32 [P_i - first_i]."""
        self._refuse_if_broken()
        params = VllmSamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids in token_ids]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [_own_logprobs(out, ids, start) for out, ids, start in zip(outputs, token_ids, first, strict=True)]

    def candidates(self, token_ids: Sequence[Sequence[int]], first: Sequence[int], k: int) -> list[TeacherLogprobs]:
        """Like `prompt_logprobs`, with the `k` tokens that are likeliest in each one's place."""
        self._refuse_if_broken()
        params = VllmSamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=k, flat_logprobs=True, detokenize=False
        )
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids in token_ids]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [_candidates(out, start, k) for out, start in zip(outputs, first, strict=True)]

    def write(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[str]:
        """One text for each prompt of token ids, without audio; `sampling.n` is 1.

        Raises `RunError`, before anything is generated, where a prompt leaves too little room for `max_tokens`.
        """
        longest, room = max(map(len, prompts), default=0), self.max_model_len - sampling.max_tokens
        if longest > room:
            raise RunError(
                f"a prompt has {longest} tokens, and {room} fit before {sampling.max_tokens} of an answer; raise the "
                "engine's max_model_len, or shorten the transcript"
            )
        made = self.generate([EngineRequest(ids) for ids in prompts], sampling)
        refused = next((m.reason for m in made if isinstance(m, EngineRefusal)), None)
        if refused:
            raise RunError(f"the engine would not take a prompt: {refused}")
        return [m.samples[0].text for m in made if isinstance(m, EngineOutput)]

    def update_weights(self, payload: WeightsPayload) -> None:
        """Swap the weights and drop everything computed with the old ones.

        `WeightsRefused` leaves the old weights in force; any other failure leaves the engine broken, and it says so
        from then on.
        """
        self._refuse_if_broken()
        payload.verify()
        self.start_update()
        try:
            self.take_update({"payload": payload})
        except WeightsRefused:
            self._broken = ""
            raise
        self.finish_update()

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Meet the sender of weight updates, as its backend's `init_info` says."""
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_update(self) -> None:
        """Begin a weight update; until `finish_update` the engine holds no usable weights."""
        self._refuse_if_broken()
        self._llm.start_weight_update()
        self._broken = "a weight update was cut short; start the engine again"

    def take_update(self, update_info: dict[str, Any]) -> None:
        """One piece of the update, as its backend describes it."""
        self._llm.update_weights({"update_info": update_info})

    def finish_update(self) -> None:
        """Put the update in force and drop everything computed with the old weights."""
        self._llm.finish_weight_update()
        self.reset_caches()
        self._broken = ""

    def reset_caches(self) -> None:
        """Forget key-value blocks, encoded audio and mel spectrograms: none may outlive the weights it came from."""
        if not self._llm.reset_prefix_cache():
            raise EngineBroken("prefix cache could not be dropped: requests are still running")
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_mm_cache()

    def close(self) -> None:
        """Shut the engine down and give its memory back. Safe to call twice."""
        if getattr(self, "_llm", None) is None:
            return
        with contextlib.suppress(Exception):
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._broken = "engine is closed"

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise EngineBroken(self._broken)

    def _enqueue(self, prompt: Any, params: VllmSamplingParams) -> EngineRefusal | None:
        """Queue one prompt. vLLM checks it here, before anything runs, so a bad one does not fail its batch."""
        try:
            self._llm.enqueue([prompt], params, use_tqdm=False)
        except (ValueError, VLLMValidationError) as error:
            return EngineRefusal(str(error).partition("\n")[0])
        return None

    def _output(self, output: RequestOutput) -> EngineOutput:
        samples = sorted(output.outputs, key=lambda o: o.index)
        texts = self._tokenizer.batch_decode([o.token_ids for o in samples], skip_special_tokens=True)
        return EngineOutput(
            prompt_ids=read_only(output.prompt_token_ids, "int32"),
            samples=tuple(_sample(o, text) for o, text in zip(samples, texts, strict=True)),
        )


@dataclass
class NoInit(WeightTransferInitInfo):
    """The object store needs no rendezvous."""


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    """One payload, already verified."""

    payload: WeightsPayload


class ObjectStoreTransfer(WeightTransferEngine[NoInit, ObjectStoreUpdate]):
    """Loads a payload that lies in this node's object store, through vLLM's layerwise reload.

    Reload is needed because a running model holds repacked weights. It rebuilds a fused layer from all its parts or
    not at all, so each touched tensor brings its siblings from the checkpoint on disk, memory-mapped once. What a push
    has as the checkpoint has it stays where it is, because vLLM 0.32 does not repack experts a second time on a CPU.
    """

    init_info_cls = NoInit
    update_info_cls = ObjectStoreUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Map the checkpoint; nothing to connect to."""
        self._base = _open_checkpoint(Path(self.model_config.model))
        self._fused = [set(parts) for parts in getattr(self.model, "packed_modules_mapping", {}).values()]
        self._touched: set[str] = set()

    def start_weight_update(self) -> None:
        """Nothing yet: a payload is checked before the model is taken apart."""

    def finish_weight_update(self) -> None:
        """Nothing left: `receive_weights` put the model together again."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Apply one payload."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        """Check every name and shape against the checkpoint, then load.

        What the last push touched and this one does not goes back to what the checkpoint says, so the model depends
        on the last payload alone.
        """
        payload = update_info.payload
        touched = self._targets(payload)
        names = self._with_siblings(touched | self._touched)
        with torch.no_grad():
            initialize_layerwise_reload(self.model)
            self.model.load_weights(self._merged(payload, sorted(names)))
            finalize_layerwise_reload(self.model, self.model_config)
        self._touched = touched

    def shutdown(self) -> None:
        """Let go of the mapped checkpoint."""
        self._base = {}

    def _targets(self, payload: WeightsPayload) -> set[str]:
        """Checkpoint names that `payload` changes; raises `WeightsRefused` where one does not fit this model."""
        whole = set(whole_tensors(payload.tensors))
        try:
            adapted = set(adapted_weights(payload.tensors))
        except ValueError as error:
            raise WeightsRefused(str(error)) from None
        if unknown := sorted((whole | adapted) - self._base.keys()):
            raise WeightsRefused(f"this checkpoint has no tensor {unknown[0]!r} ({len(unknown)} unknown in all)")
        for name in whole:
            _check_shape(name, tuple(payload.tensors[name].shape), tuple(self._base[name].shape))
        for name in adapted:
            a, b = (payload.tensors[n] for n in pair_names(name))
            _check_shape(name, (b.shape[0], a.shape[1]), tuple(self._base[name].shape))
        changed = {name for name in whole if not _is_as(payload.tensors[name], self._base[name])}
        return changed | adapted

    def _with_siblings(self, names: set[str]) -> set[str]:
        """Add the tensors that vLLM fuses with `names` into one parameter set: q with k and v, gate with up, biases."""
        wanted = set(names)
        for name in names:
            module, _, _ = name.rpartition(".")
            parent, _, leaf = module.rpartition(".")
            leaves = next((parts for parts in self._fused if leaf in parts), {leaf})
            wanted |= {f"{parent}.{part}.{kind}" for part in leaves for kind in ("weight", "bias")}
        return wanted & self._base.keys()

    def _merged(self, payload: WeightsPayload, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) as the model shall hold it: sent whole, merged here, or straight from the checkpoint."""
        for name in names:
            a, b = pair_names(name)
            if name in payload.tensors:
                yield name, to_torch(payload.tensors[name])
            elif a in payload.tensors:
                pair = to_torch(payload.tensors[a]), to_torch(payload.tensors[b])
                yield name, merge(self._base[name].to(self.model_config.dtype), *pair, payload.scale)
            else:
                yield name, self._base[name]


def register_weight_transfer() -> None:
    """Make `object_store` known to vLLM in this process; also a `vllm.general_plugins` entry point for others."""
    with contextlib.suppress(ValueError):  # already registered
        WeightTransferEngineFactory.register_engine(OBJECT_STORE, ObjectStoreTransfer)


def _use_threads(threads: int) -> None:
    """vLLM drops to one thread after loading unless OMP_NUM_THREADS says otherwise."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _engine_arguments(
    path: Path, config: EngineConfig, dtype: Precision, audio: bool, receives: str | None, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`; the CPU takes an absolute key-value cache, the GPU a share of its memory."""
    arguments: dict[str, Any] = {
        "model": str(path),
        "load_format": "safetensors",  # any other format is unpickled
        "trust_remote_code": False,
        "dtype": resolved(dtype, gpu=not current_platform.is_cpu()),
        "seed": seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "generation_config": "vllm",
    }
    if current_platform.is_cpu():
        arguments |= {"kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30), "block_size": KV_BLOCK}
        # whole prompts only: after a part of one, vLLM winds a seeded request's generator back, which a CPU's cannot
        arguments |= {"enable_chunked_prefill": False}
        arguments |= {"max_num_batched_tokens": max(config.max_model_len, CPU_PREFILL_TOKENS)}
    else:
        arguments |= {"gpu_memory_utilization": config.gpu_memory_utilization}
    if audio:
        register_models(json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [])
        arguments |= {"limit_mm_per_prompt": HEARS_ONLY, "mm_processor_cache_gb": MEL_CACHE_GB}
        # logits in bfloat16 alone cost 0.03 nats of agreement per token; a judge agrees with nobody and is spared the
        # cast of the whole head for every prompt that the CPU makes of it
        arguments |= {"hf_overrides": {"head_dtype": "float32"}}
    if receives:
        register_weight_transfer()
        arguments["weight_transfer_config"] = WeightTransferConfig(backend=receives)
    return arguments


def _prompt(request: EngineRequest) -> Any:
    """A vLLM prompt: token ids and, with audio, the raw samples."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_ids)}
    if request.samples is not None:
        prompt["multi_modal_data"] = {"audio": (request.samples, SAMPLE_RATE)}
    return prompt


def _sampling(sampling: SamplingParams, seed: int | None) -> VllmSamplingParams:
    """Ours to vLLM's. Text is decoded once at the end, so incremental detokenisation is off."""
    return VllmSamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed if seed is None else seed,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
    )


def _sample(output: CompletionOutput, text: str) -> EngineSample:
    """One completion; `logprobs=0` makes vLLM return the sampled token's alone."""
    logprobs = output.logprobs
    assert logprobs is not None
    assert len(logprobs) == len(output.token_ids)
    reason = FinishReason.LENGTH if output.finish_reason == "length" else FinishReason.STOP
    return EngineSample(
        token_ids=read_only(output.token_ids, "int32"),
        logprobs=read_only(logprobs.logprobs, "float32"),  # type: ignore[union-attr]
        text=text.strip(),
        finish_reason=reason,
    )


def _own_logprobs(output: RequestOutput, ids: Sequence[int], first: int) -> np.ndarray:
    """The entry of each prompt token itself, from position `first` on."""
    rows = output.prompt_logprobs
    assert rows is not None
    assert len(rows) == len(ids)
    return read_only([rows[i][ids[i]].logprob for i in range(first, len(ids))], "float32")  # type: ignore[index]


def _candidates(output: RequestOutput, first: int, k: int) -> TeacherLogprobs:
    """Of each position from `first` on vLLM tells the token that is there, and then the k likeliest, best first."""
    rows: Any = output.prompt_logprobs
    starts = np.asarray(rows.start_indices[first:])
    assert all(end - start == k + 1 for start, end in zip(starts, rows.end_indices[first:], strict=True))
    places = starts[:, None] + np.arange(k + 1)
    ids, logprobs = np.asarray(rows.token_ids, np.int32)[places], np.asarray(rows.logprobs, np.float32)[places]
    return TeacherLogprobs(
        read_only(logprobs[:, 0], "float32"), read_only(ids[:, 1:], "int32"), read_only(logprobs[:, 1:], "float32")
    )


def _open_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors checkpoint by name, memory-mapped."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            names = shard.keys()
            tensors |= {name: shard.get_tensor(name) for name in names}
    if not tensors:
        raise UserError(f"no .safetensors file in {folder}; save the checkpoint with save_pretrained")
    return tensors


def _is_as(array: np.ndarray, tensor: torch.Tensor) -> bool:
    sent = to_torch(array)
    return sent.dtype == tensor.dtype and torch.equal(sent, tensor)


def _check_shape(name: str, got: tuple[int, ...], want: tuple[int, ...]) -> None:
    if got != want:
        raise WeightsRefused(f"{name} has shape {list(got)} in the push and {list(want)} in this checkpoint")
