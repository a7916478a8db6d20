"""Healing of a whole model: what a fitted folder stores, or adapters beside it, trained towards the
original's outputs.
"""

from blockwright.heal.adapter import (
    Adapter,
    Attachment,
    Counts,
    Family,
    Host,
    HostKind,
    Replacement,
    Setting,
)
from blockwright.heal.batches import TaughtText, rows_of_step
from blockwright.heal.choosing import Chosen, attach_chosen, choose_adapters
from blockwright.heal.loop import Healed, HealSettings, Training, check_steps, train
from blockwright.heal.state import State
from blockwright.heal.student import ADAPTER_PREFIX, Student

__all__ = [
    "ADAPTER_PREFIX",
    "Adapter",
    "Attachment",
    "Chosen",
    "Counts",
    "Family",
    "HealSettings",
    "Healed",
    "Host",
    "HostKind",
    "Replacement",
    "Setting",
    "State",
    "Student",
    "TaughtText",
    "Training",
    "attach_chosen",
    "check_steps",
    "choose_adapters",
    "rows_of_step",
    "train",
]
