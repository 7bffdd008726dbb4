"""Keras runs on torch here; it looks at this when it is imported."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"
