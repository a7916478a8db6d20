"""Loading of fitted folders by transformers: formats in, no compression code."""

import transformers.quantizers.auto  # noqa: F401  first, because importing it registers quantizer.py

from blockwright.loading.quantizer import BlockwrightConfig, BlockwrightQuantizer, register

__all__ = ["BlockwrightConfig", "BlockwrightQuantizer", "register"]
