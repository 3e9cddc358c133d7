"""The trainer: teacher -> assistant -> student (torch, timm)."""
