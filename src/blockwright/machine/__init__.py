"""What a model takes on this machine: time by product and block, and memory beside its sites."""

from blockwright.machine.description import describe_machine, processor
from blockwright.machine.hollow import Hollow, hollow_model
from blockwright.machine.kernels import Clock
from blockwright.machine.memory import count_memory
from blockwright.machine.profile import check_workload, measure_profile, profile_inputs
from blockwright.machine.works import works_of

__all__ = [
    "Clock",
    "Hollow",
    "check_workload",
    "count_memory",
    "describe_machine",
    "hollow_model",
    "measure_profile",
    "processor",
    "profile_inputs",
    "works_of",
]
