"""Fit a model to a budget from Python, then use the folder with plain transformers.

python examples/fit_and_generate.py MODEL OUT
"""

import sys

import blockwright  # from here on transformers can load fitted folders

model, out = sys.argv[1:3]
result = blockwright.fit(model, budget=4.3, out=out, preset="fast")
print(
    f"{result.original_size_bytes} -> {result.size_bytes} bytes,",
    f"KL {result.fitted.kl_divergence}",
)

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained(out)
fitted = AutoModelForCausalLM.from_pretrained(out)
prompt = tokenizer("import os\n", return_tensors="pt")
print(tokenizer.decode(fitted.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))
