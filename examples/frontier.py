"""Build once, solve any budget: the size-loss frontier of a library, without the model.

python examples/frontier.py LIBRARY
"""

import sys
from pathlib import Path

from blockwright.library import Library
from blockwright.plan import frontier
from blockwright.types import Budget

problem = Library(Path(sys.argv[1])).problems()[0]
for plan in frontier(problem, [Budget(bits=bits / 4) for bits in range(8, 33)]):
    print(f"{plan.bits_per_weight:6.3f} bits per weight  predicted loss {plan.loss:.6g}")
