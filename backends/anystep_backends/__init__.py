"""One thin adapter per array library, found through the entry-point group ``anystep.backends``.

Importing this package imports no array library; each adapter imports its own. ``_protocol`` says what an
adapter does.
"""

from anystep._array import backend, backend_names

from ._protocol import Backend

__all__ = ["Backend", "backend", "backend_names"]
