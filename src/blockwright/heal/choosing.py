"""Which adapter stands at which host.

``auto`` goes by how a host is stored: what is quantized trains its steps (E2E-QP), factors are
trained themselves (WeLore, LQ-LoRA), kept values under a mask too, and dense weights train a share
of their channels (S2FT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.errors import AdapterError
from blockwright.heal.adapter import Adapter, Host, HostKind, Setting
from blockwright.heal.student import Student
from blockwright.registry import adapter_named

AUTO = "auto"
BY_KIND = {
    HostKind.QUANTIZED: "e2eqp",
    HostKind.TABLE: "e2eqp",
    HostKind.FACTORED: "welore",
    HostKind.SUM: "stored",
    HostKind.PRUNED: "stored",
    HostKind.DENSE: "s2ft",
}


@dataclass(frozen=True)
class Chosen:
    """One adapter and its hosts."""

    name: str
    adapter: Adapter
    hosts: tuple[Host, ...]


def choose_adapters(hosts: Sequence[Host], name: str) -> list[Chosen]:
    """The named adapter at all linears, or with ``auto`` the one that fits each host's kind.

    Raises ``AdapterError`` where a named one does not support a host.
    """
    if name == AUTO:
        found = []
        for each in dict.fromkeys(BY_KIND.values()):
            adapter = adapter_named(each)
            own = [h for h in hosts if BY_KIND[h.kind] == each and not adapter.refusal(h)]
            found += [Chosen(each, adapter, tuple(own))] if own else []
        return found
    adapter = adapter_named(name)
    linears = [host for host in hosts if host.kind is not HostKind.TABLE]
    for host in linears:
        if reason := adapter.refusal(host):
            raise AdapterError(
                f"adapter {name}: {host.name}: {reason}; leave --adapter out to choose per host"
            )
    if not linears:
        raise AdapterError(f"adapter {name}: this model has no linear that it could stand at")
    return [Chosen(name, adapter, tuple(linears))]


def attach_chosen(student: Student, chosen: Sequence[Chosen], setting: Setting) -> None:
    """Attach them all."""
    for each in chosen:
        student.attach(each.adapter.attach(student.model, each.hosts, setting))
