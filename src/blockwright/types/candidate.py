"""Candidates: what can be put at a site, written in a small grammar.

    FORMAT[+VALUES][&FORMAT][:METHOD[>METHOD]][@option=value,...]

``+`` its values are stored as, ``&`` plus (a sum of two), ``>`` then.
``int4-g64:gptq@damping=0.05``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from blockwright.errors import CandidateError

NAME = r"[a-z][a-z0-9_]*(?:-[a-z0-9]+)*"
GRAMMAR = re.compile(
    rf"(?P<format>{NAME})(?:\+(?P<values>{NAME}))?(?:&(?P<plus>{NAME}))?"
    rf"(?::(?P<methods>{NAME}(?:>{NAME})*))?(?:@(?P<options>[a-z_]+=[^,=]+(?:,[a-z_]+=[^,=]+)*))?"
)


@dataclass(frozen=True, order=True)
class Candidate:
    """A format and the methods that fill it; the text form is canonical."""

    format: str
    values: str | None = None
    plus: str | None = None
    methods: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read the grammar; raises ``CandidateError`` naming the text."""
        match = GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise CandidateError(
                f"candidate {text!r} is not of the form FORMAT[+VALUES][&FORMAT][:METHOD[>METHOD]]"
                "[@option=value,...]; try int4-g64:gptq, or see `blockwright methods`"
            )
        parts = match.groupdict()
        options = sorted(pair.split("=", 1) for pair in (parts["options"] or "").split(",") if pair)
        return cls(
            format=parts["format"],
            values=parts["values"],
            plus=parts["plus"],
            methods=tuple((parts["methods"] or "").split(">")) if parts["methods"] else (),
            options=tuple((name, value) for name, value in options),
        )

    def __str__(self) -> str:
        text = self.format
        text += f"+{self.values}" if self.values else ""
        text += f"&{self.plus}" if self.plus else ""
        text += ":" + ">".join(self.methods) if self.methods else ""
        if self.options:
            text += "@" + ",".join(f"{name}={value}" for name, value in self.options)
        return text


KEEP = Candidate("keep")
DROP = Candidate("drop")
DROP_RUN = Candidate("drop-run")
"""Blocks on offer that are dropped as one run of neighbours; in a plan they are ``drop``."""
