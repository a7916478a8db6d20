"""Methods that choose the codes of a quantized weight."""
