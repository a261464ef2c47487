"""From text to ids, and what is refused on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from speechsum.errors import UserError
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Prompt
from tests.tiny import noise, tiny_tokenizer
from tests.tiny_families import BUILDERS

FAMILY = FAMILIES["audio_flamingo3"]
TOKENIZER = tiny_tokenizer()
BUILDER = PromptBuilder(TOKENIZER, FAMILY)


def prompt(instruction: str = "summarize what is said", reference: str = "") -> Prompt:
    return Prompt("p", AudioRef("a.wav"), instruction, reference=reference)


# --- requests --------------------------------------------------------------------------------------------------------


def test_request_is_the_chat_template_with_one_placeholder():
    text = TOKENIZER.decode(BUILDER.request_ids("budget in one sentence"))
    assert text == "<|im_start|>user\n<sound>\nbudget in one sentence<|im_end|>\n<|im_start|>assistant\n"


@given(st.text(max_size=40))
def test_any_instruction_gives_one_placeholder_or_is_refused(instruction):
    if any(t in instruction for t in BUILDER.control_tokens):
        with pytest.raises(UserError):
            BUILDER.request_ids(instruction)
    else:
        ids = BUILDER.request_ids(instruction)
        assert ids.count(BUILDER.audio_id) == 1
        assert ids.count(BUILDER.end_id) == 1


@pytest.mark.parametrize("token", ["<sound>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>"])
def test_control_tokens_are_refused(token):
    with pytest.raises(UserError, match="instruction contains the control token") as error:
        BUILDER.request_ids(f"summarize{token}system")
    assert repr(token) in str(error.value)
    with pytest.raises(UserError, match="summary contains the control token"):
        BUILDER.completion_ids(f"anna {token} must")


@pytest.mark.parametrize(("audio", "found"), [("", 0), ("<sound><sound>", 2)])
def test_a_template_without_exactly_one_placeholder_is_refused(audio, found):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<sound>", audio)
    with pytest.raises(UserError, match=f"puts {found} '<sound>' into a request"):
        PromptBuilder(tokenizer, FAMILY).request_ids("summarize")


# --- expansion and references ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 50])
def test_expand_repeats_the_placeholder_where_it_stands(count):
    ids = BUILDER.request_ids("report by noon")
    at = ids.index(BUILDER.audio_id)
    expanded = BUILDER.expand(ids, count)
    assert expanded.dtype == np.int32
    assert not expanded.flags.writeable
    assert expanded.tolist() == ids[:at] + [BUILDER.audio_id] * count + ids[at + 1 :]


TURN = [{"type": "audio"}, {"type": "text", "text": "report by noon"}]
TURNS = {"granite_speech": "<|audio|>report by noon"}
"""As a family's publisher writes it, where that is not `TURN`."""
OMNI = {"qwen2_5_omni": "Qwen2_5OmniProcessor", "qwen3_omni": "Qwen3OmniMoeProcessor"}


def processor_of(name: str, path: Path, tokenizer: Any) -> Any:
    """transformers' own processor of a family.

    Those of the omni models insist on parts for images and video, which need torchvision. A recording is handled by
    code that asks these only for a size, so a stand-in serves.
    """
    if name not in OMNI:
        return transformers.AutoProcessor.from_pretrained(path)
    unseen = SimpleNamespace(merge_size=1)
    lenient = {"check_argument_for_proper_class": lambda self, name, argument: type(argument)}
    of_sound = type("OfSound", (getattr(transformers, OMNI[name]),), lenient)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(path)
    return of_sound(unseen, unseen, extractor, tokenizer, chat_template=tokenizer.chat_template)


@pytest.mark.parametrize("name", BUILDERS)
def test_expand_gives_the_prompt_that_the_processor_gives(name, tmp_path):
    """With one audio token for each of the learner's encoder states. tests/cluster/test_families.py asks vLLM."""
    path, family = BUILDERS[name](tmp_path / "checkpoint"), FAMILIES[name]
    model, extractor = family.load(path, "float32"), transformers.AutoFeatureExtractor.from_pretrained(path)
    builder = PromptBuilder.load(path, family)
    processor = processor_of(name, path, builder.tokenizer)
    turn = {"role": "user", "content": TURNS.get(name, TURN)}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    for seconds in (0.4001, 1.3, 2.6, 3.99):
        clip = noise(seconds)
        (states,) = family.encode(model, extractor, [clip])
        if name == "qwen3_omni":  # as vLLM does before it asks the processor, which would drop the last part of a frame
            clip = np.pad(clip, (0, -len(clip) % extractor.hop_length))
        theirs = processor(text=[text], audio=[clip])["input_ids"][0]
        assert builder.expand(builder.request_ids("report by noon"), len(states)).tolist() == list(theirs)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_completion_is_the_text_and_an_end_token(text):
    if any(t in text for t in BUILDER.control_tokens):
        return
    ids = BUILDER.completion_ids(text)
    assert ids[-1] == BUILDER.end_id
    assert TOKENIZER.decode(ids[:-1], clean_up_tokenization_spaces=False) == text
    assert (ids.dtype, ids.flags.writeable) == (np.int32, False)


# --- what cannot fit -------------------------------------------------------------------------------------------------


def test_problem_at_the_limit():
    longest = len(BUILDER.request_ids("summarize what is said")) - 1 + 50  # 2 s of audio
    fits = {"max_prompt_tokens": longest, "max_audio_s": 2.0}
    assert BUILDER.problem(prompt(), **fits) is None
    message = BUILDER.problem(prompt(), **fits | {"max_prompt_tokens": longest - 1})
    assert f"takes {longest - 50} tokens" in message
    assert "50 for 2 s of audio" in message
    assert f"model.max_prompt_tokens = {longest - 1}" in message


def test_an_instruction_too_long_is_reported_not_raised():
    message = BUILDER.problem(prompt("summarize " * 500), max_prompt_tokens=256, max_audio_s=2.0)
    assert "exceeds model.max_prompt_tokens = 256; shorten it or raise the limit" in message


@pytest.mark.parametrize(
    ("item", "what"), [(prompt("go <|im_end|>"), "instruction"), (prompt(reference="a <sound>"), "reference")]
)
def test_control_tokens_in_the_data_are_reported_not_raised(item, what):
    message = BUILDER.problem(item, max_prompt_tokens=256, max_audio_s=2.0)
    assert message.startswith(f"the {what} contains the control token")


# --- tokenizer and model that do not belong together -----------------------------------------------------------------


def test_a_tokenizer_without_the_audio_token_is_refused():
    with pytest.raises(UserError, match=r"the tokenizer has no '<sound>'.*tokenizer and model do not match"):
        PromptBuilder(tiny_tokenizer(audio=False), FAMILY)


@pytest.fixture
def mismatched(tiny_path, tmp_path):
    """A copy of the checkpoint whose config can be edited: gives the folder and an editor."""
    folder = shutil.copytree(tiny_path, tmp_path / "checkpoint")

    def edit(change):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return folder, edit


def test_tokenizer_and_model_that_belong_together(tiny_path):
    builder = PromptBuilder.load(tiny_path, FAMILY)
    assert builder.request_ids("summarize") == BUILDER.request_ids("summarize")
    assert TOKENIZER.decode([builder.audio_id, builder.end_id]) == "<sound><|im_end|>"


def test_a_vocabulary_larger_than_the_models_is_refused(mismatched):
    folder, edit = mismatched
    edit(lambda config: config["text_config"].update(vocab_size=len(TOKENIZER) - 1))
    with pytest.raises(UserError, match=rf"knows {len(TOKENIZER)} tokens and the model {len(TOKENIZER) - 1}"):
        PromptBuilder.load(folder, FAMILY)


def test_another_id_for_the_audio_token_is_refused(mismatched):
    folder, edit = mismatched
    edit(lambda config: config.update(audio_token_id=BUILDER.audio_id - 1))
    with pytest.raises(UserError, match=rf"has id {BUILDER.audio_id}, the model expects {BUILDER.audio_id - 1}.*match"):
        PromptBuilder.load(folder, FAMILY)


def test_another_models_tokenizer_is_refused(mismatched):
    folder, _ = mismatched
    tiny_tokenizer(audio=False).save_pretrained(folder)
    with pytest.raises(UserError, match="tokenizer and model do not match"):
        PromptBuilder.load(folder, FAMILY)
