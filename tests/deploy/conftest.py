"""Fixtures of the platform's tests that those of deploy/ use too."""

from __future__ import annotations

from tests.platform.conftest import bucket

__all__ = ["bucket"]
