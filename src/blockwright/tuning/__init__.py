"""The one block tuner: used by methods that learn, by local healing of plans, and by heal."""

from blockwright.tuning.codebook import train_codebook
from blockwright.tuning.division import DividedRounding, division_rate
from blockwright.tuning.gram import gram_error, tune_on_gram
from blockwright.tuning.loop import Example, Forward, Tuned, TuningSettings, Values, tune
from blockwright.tuning.packed import depended_on, weight_of_tensors
from blockwright.tuning.soft_rounding import SoftRounding
from blockwright.tuning.trained import FreeTensor, Trained, TrainedTensor

__all__ = [
    "DividedRounding",
    "Example",
    "Forward",
    "FreeTensor",
    "SoftRounding",
    "Trained",
    "TrainedTensor",
    "Tuned",
    "TuningSettings",
    "Values",
    "depended_on",
    "division_rate",
    "gram_error",
    "train_codebook",
    "tune",
    "tune_on_gram",
    "weight_of_tensors",
]
