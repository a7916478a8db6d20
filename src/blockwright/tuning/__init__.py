"""The one block tuner: used by methods that learn, by local healing of plans, and by heal."""

from blockwright.tuning.loop import Example, Forward, Tuned, TuningSettings, Values, tune
from blockwright.tuning.trained import TrainedTensor

__all__ = [
    "Example",
    "Forward",
    "TrainedTensor",
    "Tuned",
    "TuningSettings",
    "Values",
    "tune",
]
