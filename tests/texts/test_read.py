"""Reading documents: what is read, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockwright.errors import TextError
from blockwright.texts import read_documents


def refusal(path: Path) -> str:
    with pytest.raises(TextError) as caught:
        read_documents(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_of_any_suffix_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "notes.weird").write_text("één\r\nzwei\n", encoding="utf-8")
    assert read_documents(tmp_path / "notes.weird") == ["één\nzwei\n"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_documents(tmp_path / "a.txt") == ["hello"]


def test_a_folder_is_read_in_order_of_names_without_hidden_and_other_files(tmp_path: Path) -> None:
    files = {
        "b/z.py": "z",
        "a.txt": "a",
        "b/c.md": "c",
        ".git/config.txt": "hidden",
        "b/.secret.txt": "hidden",
        "picture.png": "no text",
        "empty.txt": " \n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_documents(tmp_path) == ["a", "c", "z"]


def test_a_folder_below_a_hidden_one_is_read(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "texts"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("a", encoding="utf-8")
    assert read_documents(folder) == ["a"]


def test_jsonl_is_one_document_per_line_whatever_characters_it_holds(tmp_path: Path) -> None:
    texts = ["one\u2028still one", "two\n", "   ", "three"]
    lines = [json.dumps({"text": text, "module": "m"}, ensure_ascii=False) for text in texts]
    (tmp_path / "t.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert read_documents(tmp_path / "t.jsonl") == ["one\u2028still one", "two\n", "three"]


def test_half_a_character_in_json_does_not_break_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n', encoding="utf-8")
    assert read_documents(tmp_path / "t.jsonl") == ["a\ufffdb \U0001f600"]


def test_a_missing_text_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing.txt")


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert "is empty" in refusal(tmp_path / "a.txt")
    assert "is empty" in refusal(tmp_path)


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "holds no text file" in refusal(tmp_path)


def test_other_encodings_are_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode("latin-1"))
    message = refusal(tmp_path)
    assert "a.txt" in message
    assert "0xfc at offset 2" in message
    assert "UTF-8" in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"body": "x"}', "field 'text'"),
        ('{"text": 3}', "field 'text'"),
        ('["x"]', "got list"),
        ('{"text": ', "not JSON"),
    ],
)
def test_bad_jsonl_is_refused_with_the_line_number(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n', encoding="utf-8")
    message = refusal(tmp_path / "t.jsonl")
    assert "line 3" in message
    assert reason in message


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")

    def deny(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", deny)
    assert "Permission denied" in refusal(tmp_path / "a.txt")
