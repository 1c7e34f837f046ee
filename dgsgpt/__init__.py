"""Train GPT models from scratch on your own machine, from the browser."""

__version__ = "0.1.0"
