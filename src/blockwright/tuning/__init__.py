"""The one block tuner: used by methods that learn, by local healing of plans, and by heal."""

from blockwright.tuning.gram import gram_error, tune_on_gram
from blockwright.tuning.loop import Example, Forward, Tuned, TuningSettings, Values, tune
from blockwright.tuning.soft_rounding import SoftRounding
from blockwright.tuning.trained import TrainedTensor

__all__ = [
    "Example",
    "Forward",
    "SoftRounding",
    "TrainedTensor",
    "Tuned",
    "TuningSettings",
    "Values",
    "gram_error",
    "tune",
    "tune_on_gram",
]
