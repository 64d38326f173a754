"""Where some look for the class."""

from uvloop import Loop

__all__ = ["Loop"]
