"""Text to speech by espeak-ng, called through its C library, so that a first run needs no recordings and no download.

espeak-ng sounds like a machine, which suits a small model: every voice says a word the same way each time, and one
second of speech takes a millisecond or two. Its state is global to the process and drifts from one call to the next, so
the samples of a clip depend on what the process said before: a sequence of calls yields the same bytes in
every fresh process, a single call does not. `speech.synthesize` therefore starts each block of clips in a new process.
"""

import ctypes
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from speechsum.audio import SAMPLE_RATE

_ACCENTS_TRAIN = ("en", "en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-gb-scotland")
_VARIANTS_TRAIN = (
    "Alex Annie Denis Diogo Henrique Hugo Lee Mario Michael Mike Nguyen Reed adam anika belinda boris "
    "caleb david f1 f4 grandma grandpa ian m1 m2 m3 m4 m7 m8 marcelo max michel miguel pablo rob robert "
    "shelby steph travis zac"
).split()

VOICES_TRAIN = tuple(f"{accent}+{variant}" for accent in _ACCENTS_TRAIN for variant in _VARIANTS_TRAIN)
"""Accents of espeak-ng, each in many variants (another throat for the same accent): what a model hears in few voices
it does not know again in a new one. Variants that clip are left out, and those with breath in them (f2, f3, f5, Alicia,
sandro, victor): their noise differs from run to run, and the same seed must give the same bytes."""

VOICES_HELD_OUT = (
    "en-gb-scotland",
    "en-gb-scotland+linda",
    "en-gb-x-gbclan+m6",
    "en-gb-x-gbcwmd",
    "en-us+quincy",
    "en+Andrea",
)
"""Voices that no training clip is spoken in: no variant or one that training never uses, and an accent (gbclan) of
which it hears nothing at all."""

_SYNCHRONOUS = 2
_UTF8 = 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_UNCLIPPED_VOLUME = 75
_PERIODS_PER_FFT = 16
"""The FFT's length is made a multiple of this many periods of the two rates: an odd length may be a slow one."""


class _Event(ctypes.Structure):
    """`espeak_EVENT` of the library's header."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_LIST_ENDS, _WORD_STARTS = 0, 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Word:
    """A word of what was said last, and when it starts, in seconds."""

    text: str
    start_s: float


class Delivery(NamedTuple):
    """How a text is spoken: what `Speaker.say` takes after it."""

    voice: str
    words_per_minute: int
    pitch: int


def sample_delivery(rng: random.Random, held_out: bool) -> Delivery:
    """A voice, of those that training never uses if `held_out`, at an unhurried rate and about its usual pitch."""
    voice = rng.choice(VOICES_HELD_OUT if held_out else VOICES_TRAIN)
    return Delivery(voice, words_per_minute=rng.randint(145, 190), pitch=rng.randint(35, 65))


class Speaker:
    """The process's one voice box. Not safe to share between threads; a second one takes over from the first."""

    def __init__(self) -> None:
        package = _espeak_package()
        self._data = Path(package.get_data_path())
        self._library = ctypes.CDLL(package.get_library_path())
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data).encode(), 0)
        if self._rate <= 0:
            raise ValueError(f"espeak-ng found no voices in {self._data}: reinstall the package espeakng-loader")
        self.words: list[Word] = []
        """Of the text that `say` spoke last, in order."""
        self._text = ""
        self._chunks: list[bytes] = []
        # The library keeps only a pointer to the callback: it must live as long as the speaker.
        self._callback = _Callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_SetParameter(_VOLUME, _UNCLIPPED_VOLUME, 0)

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> npt.NDArray[np.float32]:
        """`text` spoken by `voice`: mono samples at 16 kHz in [-1, 1], `[samples]`.

        `words_per_minute` is espeak-ng's rate (80 to 450; 175 is its usual one) and `pitch` a share of the voice's
        range in percent (0 to 100; 50 is its usual one). Raises ValueError on a voice that does not exist.
        """
        self._choose(voice)
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._chunks.clear()
        self.words.clear()
        self._text = text
        encoded = text.encode()
        failure = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        if failure:
            raise RuntimeError(f"espeak-ng could not speak {text!r} (error {failure})")
        samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float32) / np.float32(32768)
        return resampled(samples, self._rate, SAMPLE_RATE)

    def _choose(self, voice: str) -> None:
        """espeak-ng ignores an unknown variant without a word, so the file is looked up first."""
        variant = voice.partition("+")[2]
        known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}: take one such as {VOICES_TRAIN[1]!r}")

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        """Called by the library with each piece of audio, and with none at the end; 0 asks for more."""
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        for event in self._listed(events):
            if event.type == _WORD_STARTS:
                start = event.text_position - 1  # espeak-ng counts from one
                self.words.append(Word(self._text[start : start + event.length], event.audio_position / 1000))
        return 0

    @staticmethod
    def _listed(events: "ctypes._Pointer[_Event]") -> Iterator[_Event]:
        for i in itertools.count() if events else ():
            if events[i].type == _LIST_ENDS:
                return
            yield events[i]


def _espeak_package() -> ModuleType:
    try:
        import espeakng_loader
    except ImportError as missing:
        raise ModuleNotFoundError(
            "the starter speech is spoken by espeak-ng, which is not installed: pip install espeakng-loader"
        ) from missing
    package: ModuleType = espeakng_loader
    return package


def resampled(samples: npt.NDArray[np.float32], rate: int, wanted: int) -> npt.NDArray[np.float32]:
    """`samples` `[n]` at `rate` Hz as `[ceil(n * wanted / rate)]` samples at `wanted` Hz, clipped to [-1, 1].

    The spectrum is cut off (or extended with zeros) at the new rate's half. By FFT in numpy: torchaudio takes seconds
    to load in every block's process, and a matrix product starts threads that get in the way of the other workers. The
    clip is short and silent at both ends, so that the FFT takes it as periodic does no harm.
    """
    if rate == wanted or not samples.size:
        return samples
    common = math.gcd(rate, wanted)
    periods = -(-samples.size * common // rate)
    periods += -periods % _PERIODS_PER_FFT
    spectrum = np.fft.rfft(samples, n=periods * (rate // common))
    longer = periods * (wanted // common)
    resized = np.fft.irfft(spectrum[: longer // 2 + 1], n=longer) * (wanted / rate)
    length = -(-samples.size * wanted // rate)
    clipped: npt.NDArray[np.float32] = np.clip(resized[:length], -1.0, 1.0).astype(np.float32)
    return clipped
