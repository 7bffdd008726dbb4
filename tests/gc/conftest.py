"""The same fast place and single threads as for the crash tests."""

from __future__ import annotations

from tests.crash.conftest import _one_thread, scratch  # noqa: F401 - fixtures
