"""All commands; help lists them in this order."""

from __future__ import annotations

from . import runs  # isort: skip
from . import studies  # isort: skip
from . import planning  # isort: skip
from . import listing  # isort: skip
from .options import app

__all__ = ["app", "listing", "planning", "runs", "studies"]
