"""Disjoint splits of documents: statistics, choices and reported figures never share text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from blockwright.errors import TextError

LARGEST_SHARE = 0.05
"""A document longer than this share of the whole text is cut, so that one file can be split too."""
SHORTEST_PIECE = 400
"""Characters below which nothing is cut further."""


def split_documents(
    documents: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Deal documents to splits of about these shares of the characters.

    Long documents are first cut at line ends.  The order of dealing is by a seeded hash of the text
    itself, so the same documents in another order, or with repeats, give the same splits; inside a
    split they keep the order given.  Raises ``TextError`` when a split would get nothing.
    """
    limit = max(SHORTEST_PIECE, int(LARGEST_SHARE * sum(map(len, documents))))
    unique: dict[str, str] = {}
    for document in documents:
        for piece in cut(document, limit):
            if piece.strip():
                unique.setdefault(fingerprint(piece), piece)
    ordered = sorted(unique, key=lambda digest: _seeded_hash(seed, digest))
    owner = dict(zip(ordered, _deal([len(unique[d]) for d in ordered], shares), strict=True))
    splits: dict[str, list[str]] = {name: [] for name in shares}
    for digest, piece in unique.items():
        splits[owner[digest]].append(piece)
    for name, found in splits.items():
        if not found:
            raise TextError(
                f"text too short to split: {len(unique)} passages leave nothing for {name!r};"
                f" give a longer text or a separate one for each of {', '.join(shares)}"
            )
    return splits


def check_disjoint(splits: Mapping[str, Sequence[str]]) -> None:
    """Raise ``TextError`` naming both splits when one document stands in two.

    White space at either end does not make a document another one.  Check documents as they were
    read, before they are cut into pieces.
    """
    owners: dict[str, str] = {}
    for name, documents in splits.items():
        for document in documents:
            owner = owners.setdefault(fingerprint(document), name)
            if owner != name:
                start = " ".join(document.split())[:40]
                raise TextError(
                    f"the same text is in {owner!r} and {name!r} (it starts {start!r});"
                    " the splits must be disjoint, give another text for one of them"
                )


def fingerprint(document: str) -> str:
    """Digest of a document without white space at its ends."""
    return hashlib.sha256(document.strip().encode()).hexdigest()


def cut(document: str, limit: int) -> Iterator[str]:
    """The document in pieces of at most ``limit`` characters, at line ends where there are any."""
    start = 0
    while len(document) - start > limit:
        stop = document.rfind("\n", start, start + limit) + 1
        stop = stop if stop > start else start + limit
        yield document[start:stop]
        start = stop
    if start < len(document):
        yield document[start:]


def _seeded_hash(seed: int, digest: str) -> bytes:
    return hashlib.sha256(f"{seed}:{digest}".encode()).digest()


def _deal(sizes: Sequence[int], shares: Mapping[str, float]) -> Iterator[str]:
    """For each size in turn, the split that is furthest below its share of what was dealt."""
    total = sum(shares.values())
    dealt = dict.fromkeys(shares, 0)
    for size in sizes:
        after = sum(dealt.values()) + size
        name = max(shares, key=lambda split: shares[split] / total * after - dealt[split])
        dealt[name] += size
        yield name
