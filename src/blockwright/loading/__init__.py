"""Loading of fitted folders by transformers: formats in, no compression code."""

from blockwright.loading.quantizer import BlockwrightConfig, BlockwrightQuantizer, register

__all__ = ["BlockwrightConfig", "BlockwrightQuantizer", "register"]
