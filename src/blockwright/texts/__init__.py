"""Texts: documents in, token windows out.

read_documents        a file, a folder or JSONL -> documents
bundled_documents     the texts that ship with the package
split_documents       calibration, selection and held-out text from one text
check_disjoint        ... and never share a document
load_tokenizer, tokenize    documents -> a ``TokenSet`` of full windows
opening_tokens        how a tokenizer starts a document
mix_windows, token_set      windows of two origins -> one ``TokenSet``
"""

from blockwright.texts.bundled import BUNDLED_SPLITS, bundled_documents
from blockwright.texts.read import TEXT_SUFFIXES, read_documents
from blockwright.texts.split import check_disjoint, split_documents
from blockwright.texts.tokens import (
    TokenSet,
    load_tokenizer,
    mix_windows,
    opening_tokens,
    token_set,
    tokenize,
)

__all__ = [
    "BUNDLED_SPLITS",
    "TEXT_SUFFIXES",
    "TokenSet",
    "bundled_documents",
    "check_disjoint",
    "load_tokenizer",
    "mix_windows",
    "opening_tokens",
    "read_documents",
    "split_documents",
    "token_set",
    "tokenize",
]
