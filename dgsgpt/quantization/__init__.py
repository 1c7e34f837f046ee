"""Weight-only quantization: rounding, the loss and gain it brings, and keeping what was accepted."""
