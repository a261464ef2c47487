"""Made-up meetings in the formats of AMI and QMSum: when their turns were said, what is written and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from speechsum import cli
from speechsum.audio import AudioLimits
from speechsum.config import load_recipe
from speechsum.corpora.alignment import TurnTime, align
from speechsum.corpora.ami_qmsum import LICENCE, build
from speechsum.corpora.nxt import TimedWord, read_words
from speechsum.corpora.output import Split
from speechsum.corpora.qmsum import detokenised
from speechsum.data import read_manifest
from speechsum.errors import UserError

RATE = 16_000
MEETINGS = {"train": "ES9001a", "val": "IS9002b", "test": "TS9003c"}
SECONDS = 20.0

TURNS = [
    ("Project Manager", "Good morning {vocalsound} everyone ."),
    ("Marketing", "{vocalsound}"),
    ("User Interface", "The lamp should be green , I think ."),
    ("Project Manager", "{gap} Why green ?"),
    ("User Interface", "Because it 's cheap {disfmarker} , and it saves power ."),
    ("Marketing", "Unheard nonsense from elsewhere ."),
    ("Project Manager", "Fine . See you on Monday ."),
]
WORDS = {
    "A": [("Good", 1.0), ("morning", 1.5), ("everyone", 2.0), (".", 2.4), ("Why", 7.0), ("green", 7.5), ("Fine", 15.0),
          ("See", 16.0), ("you", 16.25), ("on", 16.5), ("Monday", 17.0)],
    "C": [("The", 4.0), ("lamp", 4.25), ("should", 4.5), ("be", 4.75), ("green", 5.0), ("I", 5.5), ("think", 6.0),
          ("Because", 9.0), ("it's", 9.5), ("cheap", 10.0), ("and", 11.0), ("it", 11.25), ("saves", 11.5),
          ("power", 12.0)],
}  # fmt: skip
"""Every word takes 0.25 s."""

WHOLE = {"query": "Summarize the whole meeting .", "answer": "They want a green lamp ."}


def query(*spans: tuple[Any, Any], **changes: Any) -> dict[str, Any]:
    texts = {"query": "Why green ?", "answer": "It 's cheap ."}
    return {**texts, "relevant_text_span": [[str(one), str(two)] for one, two in spans], **changes}


def write_meeting(qmsum: Path, split: str, queries: Sequence[dict[str, Any]], turns: Any = TURNS) -> Path:
    file = qmsum / "data" / "Product" / split / f"{MEETINGS[split]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    transcript = [{"speaker": speaker, "content": content} for speaker, content in turns]
    lists = {"topic_list": [], "general_query_list": [WHOLE], "specific_query_list": list(queries)}
    file.write_text(json.dumps({**lists, "meeting_transcripts": transcript}), encoding="utf-8")
    return file


def write_words(folder: Path, meeting: str, speaker: str, words: Sequence[tuple[str, float]]) -> Path:
    lines: list[str] = []
    for at, (word, start) in enumerate(words):
        kind = ' punc="true"' if word == "." else ""
        end = start + (0.0 if kind else 0.25)
        lines.append(f'<w nite:id="{speaker}{at}" starttime="{start}" endtime="{end}"{kind}>{word}</w>')
    lines.append(f'<vocalsound nite:id="{speaker}v" starttime="0.1" endtime="0.3" type="laugh"/>')
    file = folder / f"{meeting}.{speaker}.words.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    root = 'xmlns:nite="http://nite.sourceforge.net/"'
    body = "\n".join(lines)
    file.write_text(f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<nite:root {root}>{body}</nite:root>', "latin-1")
    return file


def recording(ami: Path, meeting: str) -> Path:
    return ami / "amicorpus" / meeting / "audio" / f"{meeting}.Mix-Headset.wav"


def write_recording(ami: Path, meeting: str, seconds: float = SECONDS, rate: int = RATE, channels: int = 1) -> None:
    times = np.arange(int(seconds * rate)) / rate
    samples = np.round(8000 * np.sin(2 * np.pi * (100 + 20 * times) * times)).astype("int16")
    recording(ami, meeting).parent.mkdir(parents=True, exist_ok=True)
    sf.write(recording(ami, meeting), np.repeat(samples[:, None], channels, axis=1), rate, subtype="PCM_16")


@pytest.fixture
def ami(tmp_path: Path) -> Path:
    for meeting in MEETINGS.values():
        write_recording(tmp_path / "ami", meeting)
        for speaker, words in WORDS.items():
            write_words(tmp_path / "ami" / "ami_public_manual" / "words", meeting, speaker, words)
    return tmp_path / "ami"


@pytest.fixture
def qmsum(tmp_path: Path) -> Path:
    for split in MEETINGS:
        write_meeting(tmp_path / "qmsum", split, [query((2, 4))])
    return tmp_path / "qmsum"


def built(ami: Path, qmsum: Path, max_audio_s: float = 300.0) -> tuple[Path, list[Split]]:
    out = qmsum.parent / "out"
    return out, build(ami, qmsum, out, max_audio_s, lambda text: None)


def complaint(ami: Path, qmsum: Path, max_audio_s: float = 300.0) -> str:
    with pytest.raises(UserError) as caught:
        built(ami, qmsum, max_audio_s)
    assert not (qmsum.parent / "out").exists()
    return str(caught.value)


# --- words and times -----------------------------------------------------------------------------------------------


def test_words_of_all_speakers_by_their_start(tmp_path: Path) -> None:
    one = write_words(tmp_path, "ES9001a", "A", [("So", 1.0), (".", 1.3), ("It's", 3.0)])
    two = write_words(tmp_path, "ES9001a", "B", [("Caf\xe9", 2.0)])
    two.write_bytes(two.read_bytes().replace(b"</nite:root>", b"<w>timeless</w><w starttime='x'>bad</w></nite:root>"))
    assert read_words([one, two]) == [
        TimedWord("so", 1.0, 1.25),
        TimedWord("caf\xe9", 2.0, 2.25),
        TimedWord("its", 3.0, 3.25),
    ]


def timed(text: str) -> list[TimedWord]:
    """A word a second, each half a second long."""
    return [TimedWord(word, at, at + 0.5) for at, word in enumerate(text.split())]


def test_a_turn_lasts_from_its_first_matched_word_to_its_last() -> None:
    times = align([["a", "b"], ["x", "c", "d", "y"], ["e"]], timed("a b c d e"))
    assert times == [TurnTime(0.0, 1.5, 2, 2), TurnTime(2.0, 3.5, 4, 2), TurnTime(4.0, 4.5, 1, 1)]


def test_a_turn_without_matched_words_has_the_gap() -> None:
    times = align([["x"], ["a", "b"], [], ["y"], ["d"], ["z"]], timed("a b c d"))
    assert times == [
        TurnTime(0.0, 0.0, 1, 0),
        TurnTime(0.0, 1.5, 2, 2),
        TurnTime(1.5, 3.0, 0, 0),
        TurnTime(1.5, 3.0, 1, 0),
        TurnTime(3.0, 3.5, 1, 1),
        TurnTime(3.5, 3.5, 1, 0),
    ]


def test_the_gap_of_turns_that_overlap_is_not_negative() -> None:
    spoken = [TimedWord("a", 0.0, 5.0), TimedWord("b", 4.0, 6.0)]
    assert align([["a"], ["x"], ["b"]], spoken)[1] == TurnTime(4.0, 5.0, 1, 0)


def test_nothing_in_common() -> None:
    assert align([["x"], []], timed("a b")) == [TurnTime(0.0, 0.0, 1, 0), TurnTime(0.0, 0.0, 0, 0)]


@pytest.mark.parametrize(
    ("tokenised", "plain"),
    [
        ("Um {disfmarker} , yes . {vocalsound}", "Um, yes."),
        ("{vocalsound} . Okay", "Okay"),
        ("It 's COVID-19 's ; they do n't know !", "It's COVID-19's; they don't know!"),
        ("'Kay , 's fine", "'Kay, 's fine"),
        ("{gap} {pause}", ""),
    ],
)
def test_text_is_written_as_people_write(tokenised: str, plain: str) -> None:
    assert detokenised(tokenised) == plain


# --- what is written -----------------------------------------------------------------------------------------------


def test_data_check_accepts_what_is_written(ami: Path, qmsum: Path) -> None:
    out, splits = built(ami, qmsum)
    assert [split.line() for split in splits] == [f"{name}: 2 items, 0 refused" for name in ("train", "eval", "test")]
    for name, meeting in zip(("train", "eval", "test"), MEETINGS.values(), strict=True):
        whole, part = read_manifest(out / f"{name}.parquet", root=out, limits=AudioLimits(max_s=300))
        assert (whole.id, part.id) == (f"{meeting}-0", f"{meeting}-1")
        assert (part.instruction, part.reference, part.licence) == ("Why green?", "It's cheap.", LICENCE)
        assert part.facts == ()
        assert part.transcript == (
            "User Interface: The lamp should be green, I think.\n"
            "Project Manager: Why green?\n"
            "User Interface: Because it's cheap, and it saves power."
        )
        assert whole.transcript.count("\n") == 5
    assert pq.read_schema(out / "train.parquet").names == [
        "id", "audio", "instruction", "transcript", "reference", "facts", "licence"
    ]  # fmt: skip


def test_the_recipe_names_what_is_written(ami: Path, qmsum: Path) -> None:
    out, _ = built(ami, qmsum)
    for recipe in (Path(__file__).parents[2] / "recipes").glob("paper-qwen2.5-omni-7b*.toml"):
        data = load_recipe(recipe).data
        assert data.root is not None
        for manifest in (data.train, data.eval):
            assert (out / Path(str(manifest)).relative_to(data.root)).is_file()


def test_a_stretch_is_cut_out_of_the_recording_with_its_padding(ami: Path, qmsum: Path) -> None:
    """From "The" at 4.0 s to the end of "power" at 12.25 s, and half a second each side."""
    out, _ = built(ami, qmsum)
    whole, _ = sf.read(recording(ami, "ES9001a"), dtype="int16")
    cut, rate = sf.read(out / "audio" / "ES9001a-2-4.flac", dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(cut, whole[int(3.5 * RATE) : int(12.75 * RATE)])
    np.testing.assert_array_equal(sf.read(out / "audio" / "ES9001a.flac", dtype="int16")[0], whole)


def test_padding_stays_within_the_recording(ami: Path, qmsum: Path) -> None:
    write_recording(ami, "ES9001a", seconds=17.5)
    write_words(ami / "ami_public_manual" / "words", "ES9001a", "B", [("Hello", 0.25)])
    turns = [("Marketing", "Hello"), *TURNS]
    write_meeting(qmsum, "train", [query((0, 1)), query((7, 7))], turns)
    out, _ = built(ami, qmsum)
    assert sf.info(out / "audio" / "ES9001a-0-1.flac").duration == 2.75
    assert sf.info(out / "audio" / "ES9001a-7-7.flac").duration == 3.0


def test_queries_about_one_stretch_share_its_file(ami: Path, qmsum: Path) -> None:
    write_meeting(qmsum, "train", [query((2, 4)), query((2, 2), (4, 4)), query((3, 3))])
    out, _ = built(ami, qmsum)
    audio = pq.read_table(out / "train.parquet")["audio"].to_pylist()
    assert audio[1] == audio[2] == "audio/ES9001a-2-4.flac"
    assert len(list((out / "audio").glob("ES9001a*"))) == 3


def test_several_spans_are_heard_from_the_first_to_the_last(ami: Path, qmsum: Path) -> None:
    write_meeting(qmsum, "train", [query((4, 4), (0, 0))])
    out, _ = built(ami, qmsum)
    prompt = read_manifest(out / "train.parquet")[1]
    assert prompt.audio.path.endswith("ES9001a-0-4.flac")
    assert prompt.transcript.startswith("Project Manager: Good morning everyone.\nUser Interface: The lamp")
    assert sf.info(prompt.audio.path).duration == 12.75 - 0.5


def test_the_same_input_gives_the_same_files(ami: Path, qmsum: Path) -> None:
    out, _ = built(ami, qmsum)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    shutil.rmtree(out)
    built(ami, qmsum)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert len(before) == 9


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (query((5, 5)), "unaligned"),
        (query((1, 1)), "no_text"),
        (query((2, 7)), "out_of_range"),
        (query((3, 2)), "out_of_range"),
        (query(("two", 3)), "out_of_range"),
        (query((2, 3), relevant_text_span="2-3"), "out_of_range"),
        (query((2, 3), relevant_text_span=[[2, float("inf")]]), "out_of_range"),
        (query(), "no_span"),
        (query((2, 3), answer=" {gap} "), "no_text"),
        (query((2, 3), query=""), "no_text"),
        (query((0, 6)), "too_long"),
        (query((6, 6)), "no_audio"),
    ],
)
def test_each_reason_to_refuse_a_query(ami: Path, qmsum: Path, asked: dict[str, Any], reason: str) -> None:
    """Between others that are kept, whose ids do not change."""
    seconds = 16.0 if reason == "no_audio" else SECONDS
    write_recording(ami, "ES9001a", seconds=seconds)
    write_meeting(qmsum, "train", [query((2, 4)), asked, query((3, 3))])
    out, (train, *_) = built(ami, qmsum, max_audio_s=16.5)
    expected = {reason: 1} if seconds < SECONDS else {reason: 1, "too_long": 1 + (reason == "too_long")}
    assert train.refused == expected
    ids = pq.read_table(out / "train.parquet")["id"].to_pylist()
    assert [name for name in ids if name != "ES9001a-0"] == ["ES9001a-1", "ES9001a-3"]


def test_reasons_are_counted_for_people() -> None:
    split = Split("train")
    split.refused.update(["too_long", "unaligned", "too_long"])
    assert split.line() == "train: 0 items, 3 refused (too_long 2, unaligned 1)"


def test_half_of_the_words_have_to_match(ami: Path, qmsum: Path) -> None:
    """Three of turn 6's five words are said: enough. Two are too few."""
    for said, kept in ((3, True), (2, False)):
        words = WORDS["A"][:6] + WORDS["A"][6 : 6 + said]
        write_words(ami / "ami_public_manual" / "words", "ES9001a", "A", words)
        write_meeting(qmsum, "train", [query((6, 6))])
        out, (train, *_) = built(ami, qmsum)
        assert [item.id for item in train.items] == ["ES9001a-0", *(["ES9001a-1"] if kept else [])]
        shutil.rmtree(out)


def test_a_split_that_loses_every_query_is_an_error(ami: Path, qmsum: Path) -> None:
    write_meeting(qmsum, "val", [])
    assert complaint(ami, qmsum, max_audio_s=15.0) == (
        "nothing is left of a split (eval: 0 items, 1 refused (too_long 1)); raise --max-audio-s"
    )


def test_all_that_is_wrong_with_the_input_is_said_at_once(ami: Path, qmsum: Path) -> None:
    shutil.rmtree(qmsum / "data" / "Product" / "test")
    recording(ami, "ES9001a").unlink()
    for file in ami.rglob("IS9002b.*.words.xml"):
        file.unlink()
    (qmsum / "data" / "Product" / "train" / "ES9001a.json").write_text("{}")
    message = complaint(ami, qmsum)
    assert message.startswith("the input has 4 problems:\n")
    assert "Product/test has no meetings" in message
    assert "no recording (MEETING.Mix-Headset.wav) of ES9001a; download" in message
    assert "no words (MEETING.A.words.xml and so on) of IS9002b; download" in message
    assert "ES9001a.json is not a meeting of QMSum (KeyError: 'meeting_transcripts')" in message


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    message = complaint(tmp_path / "a", tmp_path / "q")
    assert f"--ami: there is no folder {tmp_path / 'a'}" in message
    assert message.count("has no meetings") == 3


def test_damaged_files_of_ami(ami: Path, qmsum: Path) -> None:
    write_recording(ami, "ES9001a", rate=8000, channels=2)
    recording(ami, "IS9002b").write_bytes(b"RIFF")
    words = ami / "ami_public_manual" / "words"
    (words / "TS9003c.A.words.xml").write_text("<open>")
    recording(ami, "TS9003c").write_bytes(b"")
    message = complaint(ami, qmsum)
    assert message.count("\n") == 4
    assert "TS9003c.Mix-Headset.wav cannot be read" in message
    assert "2 channels at 8000 Hz" in message
    assert "IS9002b.Mix-Headset.wav cannot be read" in message
    assert "TS9003c.A.words.xml is not XML" in message


def test_words_without_times_and_files_that_are_there_twice(ami: Path, qmsum: Path) -> None:
    words = ami / "ami_public_manual" / "words"
    for speaker in WORDS:
        (words / f"ES9001a.{speaker}.words.xml").write_text("<root><w>so</w></root>")
    shutil.copytree(recording(ami, "IS9002b").parent, ami / "again")
    message = complaint(ami, qmsum)
    assert "ES9001a.A.words.xml and the like have no word with a time" in message
    assert "IS9002b.Mix-Headset.wav is there more than once" in message


def test_a_meeting_in_two_splits_would_be_trained_and_tested_on(ami: Path, qmsum: Path) -> None:
    product = qmsum / "data" / "Product"
    shutil.copy(product / "train" / "ES9001a.json", product / "test")
    assert "ES9001a is in more than one of the splits" in complaint(ami, qmsum)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_once(ami: Path, qmsum: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = qmsum.parent / "out"
    command = ["data", "build", "ami-qmsum", "--ami", str(ami), "--qmsum", str(qmsum), "--out", str(out)]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "train: 2 items, 0 refused\neval: 2 items, 0 refused\n" in printed.err
    assert cli.main(["data", "check", str(out / "train.parquet"), "--max-audio-s", "300"]) == 0
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "has train.parquet, eval.parquet, test.parquet already; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_the_command_refuses(name: str, ami: Path, qmsum: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (qmsum.parent / "file").write_text("")
    where = [str(ami), "--out", str(qmsum.parent / "file" / "out")] if name == "file" else ["gone", "--out", "o"]
    assert cli.main(["data", "build", "ami-qmsum", "--qmsum", str(qmsum), "--ami", *where]) == 2
    assert "error: --out" in (err := capsys.readouterr().err) or "error: --ami: there is no folder gone" in err


@pytest.mark.parametrize(
    "options", [[], ["ami-qmsum", "--ami", "a", "--qmsum", "q", "--out", "o", "--max-audio-s", "0"]]
)
def test_options_that_make_no_sense(options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "build", *options])
    assert ended.value.code == 2
