"""Stillhouse: from labelled pictures and a resource budget to ONNX models that fit the device."""

__version__ = "0.1.0"
