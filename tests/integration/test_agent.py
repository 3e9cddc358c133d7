"""A device that measures: what the API gives it, and the agent itself with a real model, as a real program."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from fastapi import FastAPI
from onnx import TensorProto, helper

from keys import bearer, make_key
from served import Serve, Served, problem
from stillhouse.export import agent as agents
from stillhouse.export.agent import Agent
from stillhouse.search.domain import StageKind, StagePlan, StageResult
from stillhouse.search.errors import UserError
from stillhouse.search.job import AttemptRecord, StageRecord
from stillhouse.service.app import create_app
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform

NAME = "gate-cam"
FACTS: dict[str, Any] = {
    "runtime": "onnxruntime 1.22.0",
    "measure": "d1",
    "host": {"cpu": "Cortex-A53", "cores": 4, "machine": "aarch64", "memory_bytes": None},
}


def ask(served: Served, name: str = NAME, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return served.http.put(f"/agents/{name}", json={**FACTS, **more}, headers=headers)


def model(path: Path, width: int = 8) -> Path:
    """(N, 4, 4, 3) uint8 pictures to the mean of each channel."""
    pictures = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", 4, 4, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("Cast", ["pictures"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["logits"], keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(nodes, "g" * width, [pictures], [logits], [axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(made, path)
    return path


def opened(served: Served, path: Path) -> tuple[AttemptRecord, StagePlan]:
    """A model of the store whose latency the device is asked for, as the controller asks."""
    ledger = served.ledger
    export = StagePlan(StageKind.EXPORT, {"file": path.name})
    ledger.ensure_stage(export)
    attempt = ledger.open_attempt(export.key, lease_s=60, threads=1)
    assert attempt is not None
    result = StageResult({"onnx": served.store.put(path)}, {})
    assert ledger.commit(attempt.id, attempt.token, result, seconds=1.0)
    spec = {"latency": True, "device": NAME, "threads": 1, "split": None, "file": path.name}
    plan = StagePlan(StageKind.MEASURE, spec, {"onnx": export.key}, ledger.devices()[0].code)
    ledger.ensure_stage(plan)
    asked = ledger.open_attempt(plan.key, lease_s=60, threads=1)
    assert asked is not None
    return asked, plan


def stage(served: Served, plan: StagePlan) -> StageRecord:
    return served.ledger.stages([plan.key])[plan.key]


# ---------------------------------------------------------------------------------------- the routes


def test_a_device_is_listed_once_it_asked_and_until_it_is_forgotten(served: Served) -> None:
    assert ask(served).json() == {"attempt": None, "poll_s": 1.0}
    local, cam = served.http.get("/devices").json()
    assert (local["name"], local["at_hand"], local["seen_at"]) == ("local", True, None)
    assert (cam["name"], cam["at_hand"], cam["host"], cam["runtime"]) == (NAME, True, FACTS["host"], FACTS["runtime"])
    assert time.time() - 60 < cam["seen_at"] <= time.time()
    assert served.http.delete(f"/devices/{NAME}").status_code == 204
    assert "lists them" in problem(served.http.delete(f"/devices/{NAME}"), 404)
    assert [each["name"] for each in served.http.get("/devices").json()] == ["local"]


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("local", {}, "is the machine that stages run on; take another name"),
        ("Gate%20cam", {}, "a device's name must have"),
        ("a" * 65, {}, "a device's name must have"),
        (NAME, {"runtime": ""}, "runtime"),
        (NAME, {"host": {"cpu": ["a", "list"]}}, "host"),
        (NAME, {"host": {str(n): n for n in range(99)}}, "host"),
        (NAME, {"more": 1}, "more"),
    ],
)
def test_an_announcement_that_is_wrong_says_what_must_hold(
    served: Served, name: str, more: dict[str, Any], said: str
) -> None:
    assert said in problem(ask(served, name, **more), 422)
    assert served.ledger.devices() == []


def test_its_open_attempt_is_given_again_until_it_ends(served: Served, tmp_path: Path) -> None:
    ask(served)
    attempt, _ = opened(served, model(tmp_path / "a.onnx"))
    for _ in range(2):
        assert ask(served).json()["attempt"] == {"id": attempt.id, "token": attempt.token}
    assert ask(served, "a-phone").json()["attempt"] is None
    assert served.ledger.lose(attempt.id, max_attempts=None)
    assert ask(served).json()["attempt"] is None


def test_a_device_that_changed_gives_up_what_was_meant_for_the_old_one(served: Served, tmp_path: Path) -> None:
    ask(served)
    attempt, plan = opened(served, model(tmp_path / "a.onnx"))
    assert ask(served, runtime="onnxruntime 1.23.0").json()["attempt"] is None
    assert served.ledger.attempt(attempt.id).state == "lost"
    assert (stage(served, plan).state, stage(served, plan).attempts) == ("pending", 0)


def test_two_machines_cannot_have_one_name(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(served)
    said = problem(ask(served, host={**FACTS["host"], "cpu": "Cortex-A76"}), 409)
    assert "another machine (Cortex-A53, 4 cores) asks for work as 'gate-cam'" in said
    assert ask(served, host={**FACTS["host"], "system": "Linux 6.2"}).status_code == 200, "a new kernel is no machine"
    monkeypatch.setattr("stillhouse.search.devices.AT_HAND_S", -1.0)
    assert ask(served, host={**FACTS["host"], "cpu": "Cortex-A76"}).status_code == 200


def test_a_device_that_asks_makes_the_server_forget_no_answer(served: Served) -> None:
    pulse = served.http.app.state.context.pulse  # type: ignore[attr-defined]
    before = pulse._changes
    ask(served)
    assert pulse._changes == before, "it asks every second"
    served.ready()
    assert pulse._changes > before


def test_only_a_key_for_machines_asks_for_work(serve: Serve) -> None:
    served = serve()
    user, machine = make_key(served, "read", "write"), make_key(served, "worker")
    problem(ask(served), 401)
    assert "scope worker" in problem(ask(served, headers=bearer(user)), 403)
    assert ask(served, headers=bearer(machine)).status_code == 200


def test_a_job_for_a_device_that_nobody_knows_is_refused(served: Served) -> None:
    body = {"dataset": served.ready(), "budget": {"device": NAME, "max_latency_ms": 5}}
    for door in ("/jobs", "/estimates"):
        assert "unknown device 'gate-cam'; known: local." in problem(served.http.post(door, json=body), 422)
    ask(served)
    assert served.http.get("/catalogue").json()["devices"].keys() == {NAME}
    assert served.http.post("/jobs", json=body).json()["spec"]["budget"]["device"] == NAME
    assert served.http.post("/estimates", json=body).json()["fits"] > 0


# ----------------------------------------------------------------------------------------- the agent


@pytest.fixture
def device(served: Served, live: Callable[[FastAPI], str]) -> Iterator[Agent]:
    with Agent(live(served.http.app), NAME) as agent:  # type: ignore[arg-type]
        agent.step()
        yield agent


def test_the_agent_measures_a_real_model_here(served: Served, device: Agent, tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx")
    _, plan = opened(served, path)
    assert device.step() == 0.0, "it asks again at once"
    done = stage(served, plan)
    assert done.result is not None
    assert done.result.artifacts == {}
    figures = done.result.metrics
    assert 0 < figures["latency_ms"] <= figures["latency_p95_ms"] < 1000
    assert (figures["threads"], figures["model_bytes"], figures["split"]) == (1, path.stat().st_size, None)
    assert figures["runs"] >= 50
    assert figures["runtime"].startswith("onnxruntime")
    assert figures["host"]["cores"]
    assert device.step() == 1.0


def test_a_model_that_does_not_run_there_fails_its_stage(served: Served, device: Agent, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    _, plan = opened(served, tmp_path / "a.onnx")
    device.step()
    assert stage(served, plan).state == "failed"
    assert (stage(served, plan).reason or "").startswith("gate-cam: model.onnx cannot be measured")


def test_an_attempt_that_is_taken_away_is_left(
    served: Served, device: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, plan = opened(served, model(tmp_path / "a.onnx"))
    probe = agents.measure.probe

    def slow(path: Path, *, threads: int) -> Any:
        served.ledger.lose(attempt.id, max_attempts=None)
        return probe(path, threads=threads)

    monkeypatch.setattr(agents.measure, "probe", slow)
    assert device.step() == 1.0
    assert stage(served, plan).state == "pending"


def test_the_lease_is_renewed_while_it_measures(
    serve: Serve, live: Callable[[FastAPI], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(heartbeat_s=0.1, lease_s=1.0)
    probe, seen = agents.measure.probe, list[float]()

    def slow(path: Path, *, threads: int) -> Any:
        for _ in range(8):
            time.sleep(0.1)
            seen.append(served.ledger.attempt(attempt.id).expires_at)
        return probe(path, threads=threads)

    with Agent(live(served.http.app), NAME) as agent:  # type: ignore[arg-type]
        agent.step()
        attempt, plan = opened(served, model(tmp_path / "a.onnx"))
        monkeypatch.setattr(agents.measure, "probe", slow)
        agent.step()
    assert stage(served, plan).state == "done"
    assert len(set(seen)) > 2


class _EndError(Exception):
    """The test has seen enough."""


def test_a_server_that_does_not_answer_is_asked_again() -> None:
    answers = iter([503, None, 429, 200, 200])
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        status = next(answers)
        if status is None:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(status, json={"attempt": None, "poll_s": 0.5, "detail": "later"})

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 5:
            raise _EndError

    transport = httpx.MockTransport(answer)
    with Agent("http://127.0.0.1", NAME, transport=transport, sleep=sleep) as agent, pytest.raises(_EndError):
        agent.run()
    assert waits == [1.0, 2.0, 4.0, 0.5, 0.5]


def test_what_the_server_refuses_ends_the_agent_with_its_words() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(403, json={"detail": "this needs the scope worker"}))
    refused = pytest.raises(UserError, match="refuses this device: this needs the scope worker")
    with Agent("http://127.0.0.1", NAME, transport=transport) as agent, refused:
        agent.run()
    for url in ("gate:8000", "ftp://gate", "http://"):
        with pytest.raises(UserError, match="must be like http"):
            Agent(url, NAME)


def test_the_agent_needs_no_more_than_onnxruntime_numpy_and_httpx() -> None:
    heavy = ["torch", "timm", "optuna", "sqlalchemy", "fastapi", "pydantic", "PIL", "onnx", "typer", "structlog"]
    script = f"import sys, stillhouse.export.agent; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_real_job_asks_the_named_device_before_it_trains(tmp_path: Path, live: Callable[[FastAPI], str]) -> None:
    """Real exports by real processes, timed by the agent as a program of its own; no latency is low enough."""
    platform = Platform(Settings.load(home=tmp_path / "home"))

    base = live(create_app(platform.ledger, platform.store, platform.settings))
    command = [sys.executable, "-m", "stillhouse.export.agent", base, "--name", NAME]
    stop = threading.Event()
    with (
        httpx.Client(base_url=base, timeout=60) as http,
        subprocess.Popen(command) as program,
        platform.controller() as controller,
    ):
        thread = threading.Thread(target=controller.run, args=(stop,))
        thread.start()
        try:
            dataset = http.post("/datasets", json={"builtin": "textures"}).json()["id"]
            _wait(lambda: http.get(f"/datasets/{dataset}").json()["state"] == "ready")
            _wait(lambda: len(http.get("/devices").json()) == 2)
            search = {"archs": ["lcnet_050"], "image_sizes": ["32x32"], "precisions": ["fp32"], "trials": 1}
            budget = {"device": NAME, "max_latency_ms": 0.0001}
            job = http.post("/jobs", json={"dataset": dataset, "budget": budget, "search": search}).json()["id"]
            _wait(lambda: http.get(f"/jobs/{job}").json()["state"] == "failed")
            ended = http.get(f"/jobs/{job}").json()
        finally:
            stop.set()
            thread.join(60)
            program.terminate()
        assert f"measured on device '{NAME}', max_latency_ms" in ended["reason"]
        assert {trial["state"] for trial in ended["trials"]} == {"infeasible"}
        body = {"dataset": dataset, "budget": {"device": NAME}, "search": search}
        best = http.post("/estimates", json=body).json()["likely_best"]
    assert best["measured"]
    assert best["cost"]["latency_ms"] > 0


def _wait(until: Callable[[], bool], for_s: float = 120.0) -> None:
    deadline = time.monotonic() + for_s
    while not until():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)
