"""Machine profiles: how long a model's products take on one machine, measured once.

    latency = outside + sum over blocks of what is no site + sum over sites of their work

A *work* is one product of one shape in one format, such as ``linear 5632x2048 int4-g64``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from blockwright.errors import ProfileError
from blockwright.types._decoding import Decoder
from blockwright.types.workload import Workload

PROFILE_VERSION = 2
"""2: what the original's own attention takes longer."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What ``blockwright profile`` measured; all times in nanoseconds."""

    machine: Mapping[str, str | int]
    """What it was measured on: processor, threads, versions."""
    model: str
    """Where the model was, for messages; its shapes alone matter."""
    dtype: str
    workload: Workload
    outside_ns: int
    """Stem and head without their tables, and what is between blocks."""
    blocks_ns: Mapping[str, int]
    """Block (site id) -> all of it but its sites: attention at the context, norms, ..."""
    original_extra_ns: int
    """What the attention of the original takes beyond that of a fitted folder."""
    work_ns: Mapping[str, int]
    """Work -> time that one site of it takes in one forward."""
    untimed: Mapping[str, str]
    """Work -> why it was not timed: such candidates are not offered under a speedup."""
    version: int = PROFILE_VERSION

    @cached_property
    def digest(self) -> str:
        """Identifies the profile in plans."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def time_of(self, work: Iterable[str]) -> int | None:
        """Nanoseconds of a site's work; None when a part of it was not timed."""
        times = [self.work_ns.get(name) for name in work]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"workload": self.workload.to_json()}

    def write(self, path: Path) -> None:
        """Write atomically, with the digest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        text = json.dumps(self.to_json() | {"digest": self.digest}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read and check a profile file; raises ``ProfileError`` in one line."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ProfileError(
                f"profile {path} does not exist; `blockwright profile` makes one"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ProfileError(f"profile {path} is no readable JSON: {error}") from None
        if not isinstance(data, dict):
            raise ProfileError(f"profile {path}: a JSON object is needed")
        stated = data.pop("digest", None)
        found = cls.from_json(data, str(path))
        if stated != found.digest:
            raise ProfileError(
                f"profile {path} was altered: its digest is {found.digest}, it says {stated};"
                " measure it again with `blockwright profile`"
            )
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Profile:
        """Inverse of ``to_json``; unknown keys and other versions raise ``ProfileError``."""
        version = data.get("version")
        if version != PROFILE_VERSION:
            raise ProfileError(
                f"profile {where} has version {version}, this Blockwright reads {PROFILE_VERSION};"
                " measure it again with `blockwright profile`"
            )
        return cls(**DECODER.fields(cls, data, f"profile {where}"))


DECODER = Decoder(ProfileError, least={"batch": 1, "context": 1})
