"""Finds plug-ins by scanning a package: a task or a method is one file, and being there is being registered."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def scan(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of ``base`` that the package's modules define, by their ``name``, sorted.

    Raises:
        ValueError: Two of them bear one name.
    """
    found: dict[str, type[T]] = {}
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for value in vars(module).values():
            concrete = inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
            if not concrete or value.__module__ != module.__name__:
                continue
            name: str = value.name
            if name in found:
                raise ValueError(f"{name!r} is named by {found[name].__module__} and by {module.__name__}")
            found[name] = value
    return dict(sorted(found.items()))
