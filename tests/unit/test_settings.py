"""Settings come from the environment, are checked together, and each is documented."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stillhouse.search.errors import UserError
from stillhouse.service.settings import Settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("STILLHOUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_defaults(tmp_path: Path) -> None:
    settings = Settings.load()
    assert settings.home == tmp_path / ".stillhouse"
    assert settings.database_url == f"sqlite:///{tmp_path}/.stillhouse/stillhouse.db"
    assert (settings.slots, settings.hub, settings.allowed_folder) == (None, "auto", None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_environment_and_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", "elsewhere")
    monkeypatch.setenv("STILLHOUSE_SLOTS", "3")
    monkeypatch.setenv("STILLHOUSE_ALLOWED_FOLDER", "~/data")
    monkeypatch.setenv("STILLHOUSE_PORT", "9000")
    settings = Settings.load(port=0)
    assert settings.home == tmp_path / "elsewhere"
    assert settings.database_url.endswith("/elsewhere/stillhouse.db")
    assert (settings.slots, settings.port) == (3, 0)
    assert settings.allowed_folder == tmp_path / "data"


def test_no_env_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STILLHOUSE_PORT=9\n")
    assert Settings.load().port == 8000


def test_folders(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "h")
    settings.make_folders()
    settings.make_folders()
    folders = {settings.artifacts, settings.cache, settings.work, settings.logs, settings.uploads}
    assert folders == set((tmp_path / "h").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="STILLHOUSE_HOME"):
        Settings.load(home=tmp_path / "file").make_folders()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lease_s": 6.0, "heartbeat_s": 2.0}, r"heartbeat_s < lease_s / 3 must hold.*heartbeat_s=2 and lease_s=6"),
        ({"port": 70000}, r"STILLHOUSE_PORT: .*65535, but got 70000"),
        ({"slots": 0}, r"STILLHOUSE_SLOTS: "),
        ({"hub": "on"}, r"STILLHOUSE_HUB: .*'auto' or 'off', but got 'on'"),
        ({"max_attempts": "many"}, r"STILLHOUSE_MAX_ATTEMPTS: .*but got 'many'"),
        ({"prot": 1}, r"STILLHOUSE_PROT: "),
    ],
)
def test_malformed(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings.load(**given)


def test_lease_just_long_enough() -> None:
    assert Settings.load(lease_s=6.1, heartbeat_s=2.0).lease_s == 6.1


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_each_is_documented(name: str) -> None:
    description = Settings.model_fields[name].description or ""
    assert len(description) > 20
    assert description.endswith(".")
