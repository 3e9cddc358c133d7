"""Losses as pure functions, one a file; each is recomputed longhand in ``tests/golden/test_losses*.py``."""
