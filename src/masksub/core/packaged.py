"""The adapters that come with the package fill the core's tables; they are loaded when a table is first looked at.

The core doesn't import them: it knows their name, as it would know that of a plug-in.
"""

from __future__ import annotations

import importlib

__all__ = ["load_packaged"]

_ADAPTERS = f"{__name__.partition('.')[0]}.adapters"


def load_packaged() -> None:
    """Have the tables filled, whichever part of the core was imported first. While they are filled, does nothing."""
    importlib.import_module(_ADAPTERS)
