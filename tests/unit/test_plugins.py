"""A method is registered by lying in its folder."""

from pathlib import Path

from stillhouse.distill import methods
from stillhouse.distill.method import Method
from stillhouse.distill.plugins import scan


def test_the_folder_is_the_registry() -> None:
    found = scan(methods, Method)  # type: ignore[type-abstract]
    assert list(found) == sorted(found)
    assert len(found) == len([path for path in Path(methods.__file__).parent.glob("*.py") if path.stem != "__init__"])
    assert {"supervised", "logits", "pixel", "tas"} <= set(found)
