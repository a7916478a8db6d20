"""Quality, speed and memory of finished models."""

from blockwright.evaluate.fresh import loaded_logits, measure_speed
from blockwright.evaluate.quality import FinalHidden, measure, run_to_file

__all__ = ["FinalHidden", "loaded_logits", "measure", "measure_speed", "run_to_file"]
