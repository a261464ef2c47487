"""Encoded recordings: each encoded once, as long as there is room for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.clips import EncodedClips
from speechsum.types import AudioRef

A, B, C = (AudioRef(name) for name in "abc")
BYTES = 4 * 3  # of one clip's states, three float32


class Encoder:
    """States that hold the clip's first sample three times; keeps what it was asked to encode."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []

    def load(self, ref: AudioRef) -> np.ndarray:
        return np.full(5, float(ord(ref.path)), np.float32)

    def encode(self, clips: list[np.ndarray]) -> list[torch.Tensor]:
        self.calls.append([float(clip[0]) for clip in clips])
        return [torch.full((1, 3), float(clip[0])) for clip in clips]


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def heard(states: list[torch.Tensor]) -> str:
    return "".join(chr(int(each[0, 0])) for each in states)


def test_a_clip_is_encoded_once_and_new_ones_together(encoder: Encoder) -> None:
    clips = EncodedClips(encoder.load, encoder.encode)
    assert heard(clips.states([B, A, B])) == "bab"
    assert heard(clips.states([A, C, B])) == "acb"
    assert heard(clips.states([])) == ""
    assert encoder.calls == [[98.0, 97.0], [99.0]]


def test_rows_of_one_file_are_clips_of_their_own(encoder: Encoder) -> None:
    clips = EncodedClips(encoder.load, encoder.encode)
    clips.states([AudioRef("a", 0), AudioRef("a", 1), AudioRef("a", 0)])
    assert encoder.calls == [[97.0, 97.0]]


def test_who_was_not_asked_for_the_longest_makes_room(encoder: Encoder) -> None:
    clips = EncodedClips(encoder.load, encoder.encode, room_bytes=2 * BYTES)
    for asked in (A, B, A, C, A, C):
        clips.states([asked])
    assert encoder.calls == [[97.0], [98.0], [99.0]]
    clips.states([B])
    assert encoder.calls[3:] == [[98.0]]


def test_what_is_asked_for_together_is_given_however_little_room_there_is(encoder: Encoder) -> None:
    clips = EncodedClips(encoder.load, encoder.encode, room_bytes=BYTES - 1)
    for _ in range(2):
        assert heard(clips.states([A, B, A])) == "aba"
    assert encoder.calls == [[97.0, 98.0]] * 2
