"""Quality, speed and memory of finished models."""

from blockwright.evaluate.fresh import Answers, Loading, ask_fresh_process
from blockwright.evaluate.quality import FinalHidden, measure, run_to_file

__all__ = [
    "Answers",
    "FinalHidden",
    "Loading",
    "ask_fresh_process",
    "measure",
    "run_to_file",
]
