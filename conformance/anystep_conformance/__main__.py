"""``python -m anystep_conformance``."""

from .cli import main

main()
