"""One still image (or only a prompt) in, one finished video out."""

__version__ = "0.1.0"
