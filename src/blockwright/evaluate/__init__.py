"""Quality, speed and memory of finished models, and the text that a model writes itself."""

from blockwright.evaluate.difference import loss_against
from blockwright.evaluate.fresh import Answers, Loading, ask_fresh_process
from blockwright.evaluate.importance import (
    BlockScores,
    Turn,
    removal_order,
    score_blocks,
    turn_of,
)
from blockwright.evaluate.quality import FinalHidden, measure, run_from, run_to_file
from blockwright.evaluate.sampled import BATCH_DOCUMENTS, Sampling, sample_documents
from blockwright.evaluate.timing import TimedFolder, time_folder, time_in_turn

__all__ = [
    "BATCH_DOCUMENTS",
    "Answers",
    "BlockScores",
    "FinalHidden",
    "Loading",
    "Sampling",
    "TimedFolder",
    "Turn",
    "ask_fresh_process",
    "loss_against",
    "measure",
    "removal_order",
    "run_from",
    "run_to_file",
    "sample_documents",
    "score_blocks",
    "time_folder",
    "time_in_turn",
    "turn_of",
]
