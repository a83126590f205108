"""Small trained models, shipped with the package, that show a scheduler at work on any array library."""

from anystep.demo import digits

__all__ = ["digits"]
