"""Fit a model to a budget, then use the folder with plain transformers.

python examples/fit_and_generate.py MODEL OUT [TEXT]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import blockwright  # from here on transformers can load fitted folders

model, out, *text = sys.argv[1:]
result = blockwright.fit(
    model,
    budget=4.6,
    out=out,
    preset="fast",
    calibration=text[0] if text else None,
    speed=False,  # leave tokens/s unmeasured
)
print(f"{result.original_size_bytes} -> {result.size_bytes} bytes")
print(f"perplexity {result.original.perplexity:.2f} -> {result.fitted.perplexity:.2f}")

tokenizer = AutoTokenizer.from_pretrained(out)
fitted = AutoModelForCausalLM.from_pretrained(out)
prompt = tokenizer("import os\n", return_tensors="pt")
tokens = fitted.generate(
    input_ids=prompt["input_ids"],
    attention_mask=prompt["attention_mask"],
    max_new_tokens=20,
    do_sample=False,
    pad_token_id=tokenizer.pad_token_id,
)
print(tokenizer.decode(tokens[0]))
