"""Read documents from a text file, a folder of them, or JSONL with a ``text`` field."""

from __future__ import annotations

import json
from pathlib import Path

from blockwright.errors import TextError

TEXT_SUFFIXES = (
    *(".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".jsonl", ".csv"),
    *(".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".kt", ".lua"),
    *(".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts"),
)
"""Files that are read from a folder; a file named directly may have any suffix."""


def read_documents(path: Path | str) -> list[str]:
    """Documents of ``path`` in a fixed order: one per file, or one per line of JSONL.

    A folder is read recursively, sorted by name, hidden files and other suffixes left out.
    Documents of white space only are left out.  Raises ``TextError`` when nothing is left or
    something is no text.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise TextError(f"text {path} does not exist; give a text file, a folder or JSONL")
        files = _text_files(path) if path.is_dir() else [path]
        documents = [document for file in files for document in _read_file(file)]
    except OSError as error:
        raise TextError(f"text {path} cannot be read: {error.strerror or error}") from None
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise TextError(f"text {path} is empty; give a text with at least a few thousand words")
    return documents


def parse_jsonl(text: str, where: str) -> list[str]:
    """The ``text`` field of every line; blank lines are left out."""
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TextError(f"text {where}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            got = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise TextError(
                f"text {where}, line {number}: needs an object with a string field 'text',"
                f" got {got}"
            )
        documents.append(_without_lone_surrogates(record["text"]))
    return documents


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell half a character, which no tokenizer takes; it becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_files(folder: Path) -> list[Path]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in TEXT_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise TextError(
            f"text folder {folder} holds no text file; files ending in"
            f" {', '.join(TEXT_SUFFIXES[:6])} ... are read"
        )
    return files


def _read_file(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"text {file} is not UTF-8 (byte {error.object[error.start]:#04x} at offset"
            f" {error.start}); convert it, for example with `iconv -t UTF-8`"
        ) from None
    return parse_jsonl(text, str(file)) if file.suffix.lower() == ".jsonl" else [text]
