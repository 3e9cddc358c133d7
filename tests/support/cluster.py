"""A real Ray cluster of two nodes on this machine, each of which declares a GPU; started and ended by the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

TOKEN = "the-token-of-the-cluster-of-the-tests"  # noqa: S105 - of no other cluster
NODE_GPUS, NODE_CPUS = 1, 2


class Cluster:
    """Two nodes that ask for a token; the first is the head. Each can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.dashboard_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        self.head: subprocess.Popen[bytes] | None = None
        self.node: subprocess.Popen[bytes] | None = None

    def whole(self) -> None:
        """Starts what is not running, and waits until the head knows both nodes."""
        if self.head is None:
            self.kill_node()  # a node does not outlive its head
            more = [f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", f"--temp-dir={self.folder / 'r'}"]
            more += ["--head", "--include-dashboard=true", f"--ray-client-server-port={free_port()}"]
            self.head = self._start("head", *more)
            self._await(1)
        if self.node is None:
            self.node = self._start("node", f"--address=127.0.0.1:{self.port}")
        self._await(2)

    def kill_head(self) -> None:
        """Ends the head as a power cut would."""
        if self.head is not None:
            kill_family(self.head)
        self.head = None

    def kill_node(self) -> None:
        """Ends the second node as a power cut would."""
        if self.node is not None:
            kill_family(self.node)
        self.node = None

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)

    def nodes(self) -> int:
        """Nodes that the head knows to be alive."""
        answer = self.ask("/api/v0/nodes")
        return sum(node["state"] == "ALIVE" for node in answer.json()["data"]["result"]["result"])

    def head_id(self) -> str:
        """Ray's name of the head."""
        nodes = self.ask("/api/v0/nodes?detail=true").json()["data"]["result"]["result"]
        return str(next(node["node_id"] for node in nodes if node["is_head_node"]))

    def node_of(self, job: str) -> str | None:
        """Ray's name of the node that a job runs on; None before it runs."""
        found: str | None = self.ask(f"/api/jobs/{job}").json()["driver_node_id"]
        return found

    def live(self) -> list[str]:
        """Jobs that have not ended."""
        jobs = self.ask("/api/jobs/").json()
        return [str(job["submission_id"]) for job in jobs if job["status"] in ("PENDING", "RUNNING")]

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            # A dead node is known after seconds and not half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "2",
            "STILLHOUSE_HOME": str(self.folder / f"home-{name}"),  # each has a disk of its own
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # a test may hide all GPUs, and then a node may declare none
        resources = [f"--num-gpus={NODE_GPUS}", f"--num-cpus={NODE_CPUS}", "--object-store-memory=80000000"]
        agent = f"--dashboard-agent-listen-port={free_port()}"
        command = [str(program()), "start", "--block", "--disable-usage-stats", agent, *resources, *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _await(self, nodes: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.nodes() == nodes:
                    return
            except (httpx.TransportError, KeyError, TypeError, ValueError):
                pass
            logs = [path.read_text() for path in self.folder.glob("*.log")]
            assert time.monotonic() < deadline, f"the cluster does not have {nodes} nodes: {logs}"
            time.sleep(0.1)


def program() -> Path:
    return Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that descend from it; the leader first, so that it starts nothing anew."""
    family = [process.pid]
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(20)


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    if not program().exists():
        missing = "Ray is not installed: pip install 'stillhouse[ray]'"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # Not under pytest's folder: the paths of its sockets may have 107 bytes.
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="ray-")))
    try:
        yield cluster
    finally:
        cluster.kill_node()
        cluster.kill_head()
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """The cluster with both nodes, and no job."""
    _cluster.whole()
    until(lambda: not _cluster.live(), "an earlier test's job goes on")
    return _cluster


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.05)
