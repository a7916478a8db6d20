"""Everything Blockwright raises on purpose.

    BlockwrightError
    ├── UserError              one clear line on stderr, exit code 2
    │   ├── ModelError         a folder or architecture that cannot be handled
    │   ├── CheckpointError    tensors missing, truncated, misshapen, not finite
    │   ├── CandidateError     a candidate, format, method or option that does not exist
    │   ├── FormatError        a shape the format cannot take; a newer format version
    │   ├── BudgetError        a budget no plan can meet
    │   ├── TextError          text empty, too short, or in two splits
    │   ├── PlanError          a plan file that is damaged or infeasible
    │   ├── RecipeError        a recipe that is damaged, or no longer finds what it was made with
    │   ├── ProfileError       a machine profile that is damaged or of another machine
    │   ├── OutputError        the output folder, disk space, permissions
    │   ├── LibraryError       a damaged or busy library
    │   ├── AttentionError     a policy, shape or option that attention cannot take
    │   ├── TrainingError      a recipe, schedule or model that training cannot take
    │   ├── AdapterError       an adapter or optimizer that healing cannot take
    │   └── KernelError        a native kernel that cannot be built on this machine
    ├── NumericalError         a method failed on one site: the variant becomes unavailable
    └── StatisticMissingError  a method read a statistic that it did not declare

A ``UserError`` message says what was wrong, where, what was got, what is allowed, what to do next.
"""

from __future__ import annotations


class BlockwrightError(Exception):
    """Base of all errors raised on purpose."""


class UserError(BlockwrightError):
    """Bad input or surroundings; the message is one line for the user.

    Line breaks become spaces, and other characters that do not print, which come from names in
    damaged or hostile files, are escaped.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else _escaped(c) for c in super().__str__())


class ModelError(UserError):
    """A model folder or architecture that cannot be handled."""


class CheckpointError(UserError):
    """Tensors missing, truncated, of another shape, or not finite."""


class CandidateError(UserError):
    """An unknown or malformed candidate, format, method or option."""


class FormatError(UserError):
    """A shape that the format cannot take, or a folder of a newer format version."""


class BudgetError(UserError):
    """A budget that no plan can meet."""


class TextError(UserError):
    """Calibration, selection or held-out text that cannot be used."""


class PlanError(UserError):
    """A plan file that is damaged, foreign or infeasible."""


class RecipeError(UserError):
    """A recipe that is damaged, or that no longer finds what it was made with."""


class ProfileError(UserError):
    """A machine profile that is damaged, or of another machine, model or workload."""


class OutputError(UserError):
    """The output folder is not empty, not writable, or the disk is full."""


class LibraryError(UserError):
    """The library is damaged or in use."""


class AttentionError(UserError):
    """A policy, shape or option that attention cannot take."""


class TrainingError(UserError):
    """A recipe, schedule or model that training cannot take, or a loss that is not finite."""


class AdapterError(UserError):
    """An adapter or optimizer that does not exist, or cannot stand at a host."""


class KernelError(UserError):
    """A native kernel that cannot be built or used on this machine."""


class NumericalError(BlockwrightError):
    """A method failed on one site; its variant becomes unavailable with this reason."""


class StatisticMissingError(BlockwrightError):
    """A statistic was read that the method did not declare or that was not gathered."""


def _escaped(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")
