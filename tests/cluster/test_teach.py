"""What `data teach` refuses before the teacher loads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.teach import teach
from speechsum.config import STANDALONE, load_recipe
from speechsum.errors import UserError
from tests.tiny import recording, tiny_tokenizer


def test_every_row_that_the_teacher_cannot_read_is_named(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    tiny_tokenizer().save_pretrained(teacher)
    (teacher / "config.json").write_text('{"model_type": "qwen2"}')
    (teacher / "model.safetensors").touch()
    recording(tmp_path / "a.wav", 0.5, seed=1)
    transcripts = {"fits": "anna must go", "long": "anna must go " * 100, "empty": " "}
    rows = [{"id": name, "audio": "a.wav", "instruction": "Sum up.", "transcript": said}
            for name, said in transcripts.items()]  # fmt: skip
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    chosen = [f"teacher.path={teacher}", "teacher.engine.max_model_len=200", "rollout.max_tokens=48"]
    with pytest.raises(UserError) as refused:
        teach(load_recipe(STANDALONE, chosen), manifest, tmp_path / "taught.jsonl", print)
    _, long, empty = str(refused.value).splitlines()
    assert re.search(r"id 'long': .* take \d{3} tokens, and 152 fit before an answer; raise teacher\.engine", long)
    assert "id 'empty': transcript missing or empty" in empty
