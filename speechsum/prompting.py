"""The only place where text becomes token ids.

A request is tokenised once, with one audio placeholder. The engine expands the placeholder and returns the ids as
it saw them; the learner trains on those ids and on the ids the engine sampled. Nothing is ever re-tokenised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechsum.errors import UserError
from speechsum.families import Family
from speechsum.types import Prompt, read_only

CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,30}\|>")


def user_turn(tokenizer: Any, text: str) -> list[int]:
    """Ids of a user's turn of plain text, up to where the answer starts."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def plain(text: str) -> str:
    """Without control tokens, which would open another turn."""
    return CONTROL_TOKEN.sub(" ", text).strip()


def with_transcript(instruction: str, transcript: str) -> str:
    """A request as somebody gets it who reads what was said instead of hearing it."""
    return f"{plain(instruction)}\n\nTranscript: {plain(transcript)}"


def transcript_ids(tokenizer: Any, instruction: str, transcript: str) -> list[int]:
    """The whole prompt of a reader: teacher, or a student in its text mode."""
    return user_turn(tokenizer, with_transcript(instruction, transcript))


def check_same_ids(student: Any, teacher: Any) -> None:
    """Raise `UserError` unless every id that both tokenizers have means the same token to both.

    A teacher scores the ids that the student sampled. Where one means something else to it, its lesson is noise. Ids
    that are control tokens to both may differ, as the marks of audio and of images do between Qwen2.5-Omni and
    Qwen2.5: neither model expects one within an answer, whatever it is called. The token that ends one may not.
    """
    common = range(min(len(student), len(teacher)))
    ours, theirs = (tokenizer.convert_ids_to_tokens(common) for tokenizer in (student, teacher))
    control = (_control_ids(student) & _control_ids(teacher)) - {student.eos_token_id}
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own != other and number not in control:
            raise UserError(
                f"token {number} is {own!r} to the student and {other!r} to the teacher, which has to share its ids; "
                "choose a teacher of the same vocabulary, or let it write references (`speechsum data teach`) and "
                "train on those with an sft stage"
            )


def _control_ids(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def load_tokenizer(checkpoint: Path | str) -> Any:
    """The tokenizer of a checkpoint, with its chat template wherever the checkpoint keeps that."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    legacy = Path(checkpoint) / "chat_template.json"
    if tokenizer.chat_template is None and legacy.is_file():  # older checkpoints keep it where processors look
        tokenizer.chat_template = json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


class PromptBuilder:
    """Turns requests and references into ids for one family of audio LLM."""

    def __init__(self, tokenizer: Any, family: Family) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self.audio_id: int = tokenizer.convert_tokens_to_ids(family.audio_token)
        if self.audio_id is None or self.audio_id == tokenizer.unk_token_id:
            raise UserError(
                f"the tokenizer has no {family.audio_token!r}, which {family.name} models mark audio with; "
                "tokenizer and model do not match: point model.path at a checkpoint that holds both"
            )
        self.end_id: int = tokenizer.eos_token_id
        added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self.control_tokens = sorted({*tokenizer.all_special_tokens, *added} - {""})

    @classmethod
    def load(cls, checkpoint: Path | str, family: Family) -> PromptBuilder:
        """From a checkpoint folder. Raises `UserError` when tokenizer and model do not belong together."""
        from transformers import AutoConfig

        builder = cls(load_tokenizer(checkpoint), family)
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        vocab = family.text_config(config).vocab_size
        if len(builder.tokenizer) > vocab:
            raise UserError(
                f"{checkpoint}: the tokenizer knows {len(builder.tokenizer)} tokens and the model {vocab}; "
                "they do not match: copy the model's own tokenizer files beside it"
            )
        if builder.audio_id != family.audio_token_id(config):
            raise UserError(
                f"{checkpoint}: the tokenizer's {family.audio_token!r} has id {builder.audio_id}, the model expects "
                f"{family.audio_token_id(config)}; they do not match: copy the model's own tokenizer files beside it"
            )
        return builder

    def request_ids(self, instruction: str) -> list[int]:
        """Ids of the whole request, with one placeholder where the audio goes.

        Raises `UserError` when the instruction holds the model's control tokens, which would let data speak in
        another role or bring a second recording.
        """
        self._refuse_control_tokens("instruction", instruction)
        turn = {"role": "user", "content": self.family.user_content(instruction)}
        text = self.tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if ids.count(self.audio_id) != 1:
            raise UserError(
                f"the chat template puts {ids.count(self.audio_id)} {self.family.audio_token!r} into a request "
                "instead of one; use the chat template that belongs to the model"
            )
        return ids

    def expand(self, request_ids: list[int], audio_tokens: int) -> np.ndarray:
        """The prompt [P] as the engine sees it: the placeholder repeated for every audio token."""
        at = request_ids.index(self.audio_id)
        return read_only(request_ids[:at] + [self.audio_id] * audio_tokens + request_ids[at + 1 :], "int32")

    def completion_ids(self, text: str) -> np.ndarray:
        """A text to learn from as response ids [R], end token included. Raises `UserError` on control tokens."""
        self._refuse_control_tokens("summary", text)
        return read_only([*self.tokenizer(text, add_special_tokens=False).input_ids, self.end_id], "int32")

    def text_of(self, token_ids: Sequence[int]) -> str:
        """What response ids spell, as an engine's answers are kept: without special tokens and outer spaces."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def _refuse_control_tokens(self, what: str, text: str) -> None:
        found = next((t for t in self.control_tokens if t in text), None)
        if found is not None:
            raise UserError(f"the {what} contains the control token {found!r}; remove it")

    def problem(self, prompt: Prompt, *, max_prompt_tokens: int, max_audio_s: float) -> str | None:
        """Why a prompt cannot fit the context, or None. For the manifest's one pass over all rows."""
        try:
            request = len(self.request_ids(prompt.instruction)) - 1  # its placeholder becomes the audio
            self._refuse_control_tokens("reference", prompt.reference)
        except UserError as error:
            return str(error)
        audio = round(max_audio_s * self.family.tokens_per_s)
        if request + audio > max_prompt_tokens:
            return (
                f"the instruction takes {request} tokens, which with {audio} for {max_audio_s:g} s of audio exceeds "
                f"model.max_prompt_tokens = {max_prompt_tokens}; shorten it or raise the limit"
            )
        return None
