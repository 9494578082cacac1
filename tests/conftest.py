"""What every test shares: Hypothesis without deadlines, because timings don't belong in tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")
