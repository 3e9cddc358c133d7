"""What is published to the ledger, and the lock on a home folder."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from stillhouse.search.errors import ConflictError
from stillhouse.service import steering, wiring
from stillhouse.service.engine.local import LocalEngine
from stillhouse.service.engine.ray import RayEngine
from stillhouse.service.settings import Settings

CATALOGUE = {"names": ["a"], "weights": {"package": ["a"], "hub": ["b"]}}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("STILLHOUSE_DATABASE_URL", raising=False)
    return Settings.load(home=tmp_path, hub="auto")


@pytest.mark.parametrize(("hub", "answers", "offered"), [("auto", True, ["b"]), ("auto", False, []), ("off", True, [])])
def test_hub_weights_are_published_only_when_they_can_be_had(
    hub: str, answers: bool, offered: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "hub_answers", lambda: answers)
    data = wiring.published(CATALOGUE, settings.model_copy(update={"hub": hub}))
    assert data["weights"] == {"package": ["a"], "hub": offered}
    assert data["names"] == ["a"]


def test_the_hub_answers_when_its_address_takes_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring.hub, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(wiring.hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert wiring.hub_answers()
        monkeypatch.setattr(wiring.hub, "HF_HUB_OFFLINE", True)
        assert not wiring.hub_answers()
    monkeypatch.setattr(wiring.hub, "HF_HUB_OFFLINE", False)
    assert not wiring.hub_answers()


def test_one_home_has_one_controller(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "worker_catalogue", lambda _: CATALOGUE)

    def platform() -> wiring.Platform:
        return wiring.Platform(settings)

    with platform().controller(), pytest.raises(ConflictError, match=r"already works on .*STILLHOUSE_HOME"):
        platform().controller().__enter__()
    with platform().controller() as controller:
        assert controller.step()


def test_the_settings_name_the_engine(settings: Settings) -> None:
    with closing(steering.make_engine(settings)) as engine:
        assert isinstance(engine, LocalEngine)
    limited = settings.model_copy(update={"stage_memory_bytes": 2**33, "slots": 3})
    with closing(steering.make_engine(limited)) as engine:
        assert isinstance(engine, LocalEngine)
        assert (engine._memory_bytes, engine.capacity()) == (2**33, 3)
    ray = settings.model_copy(update={"engine": "ray", "ray_cpus_per_stage": 3})
    with closing(steering.make_engine(ray)) as engine:
        assert isinstance(engine, RayEngine)
        assert (engine.threads(), engine.one_machine) == (3, False)


def test_the_cluster_s_token_is_not_shown(settings: Settings) -> None:
    shown = Settings.load(home=settings.home, ray_token="a secret")  # noqa: S106 - of no cluster
    assert "a secret" not in f"{shown!r} {shown.model_dump_json()}"
