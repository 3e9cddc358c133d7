"""The files that bring the service up: they parse, name what exists, and give no secret to who does not need it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pytest
import yaml
from compose_spec import PyCompose
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cluster import program
from stillhouse.service.cli import MODULES
from stillhouse.service.db.connect import database_url
from stillhouse.service.settings import Settings

ROOT = Path(__file__).parents[2]
KNOWN = {f"STILLHOUSE_{name.upper()}": name for name in Settings.model_fields}
COMMANDS = set(MODULES)
OURS, RAYS = ("api", "controller"), ("ray-head", "gpu-worker")


class Strict(BaseModel):
    """A mapping of the compose specification that takes the keys named here and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


Duration = Annotated[str, StringConstraints(pattern=r"^(\d+(us|ms|s|m|h))+$")]


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    test: Annotated[list[str], Field(min_length=2)]
    interval: Duration
    timeout: Duration
    retries: Annotated[int, Field(ge=1)]


class Device(Strict):
    driver: Literal["nvidia"]
    count: int | Literal["all"]
    capabilities: list[str]


class Reservations(Strict):
    devices: list[Device]


class Resources(Strict):
    reservations: Reservations


class Deploy(Strict):
    resources: Resources


class Service(Strict):
    image: str
    build: str | None = None
    profiles: list[Literal["cluster"]] = []
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    init: bool = False
    stop_grace_period: Duration | None = None
    shm_size: str | None = None
    cap_drop: list[str] = []
    security_opt: list[str] = []
    environment: dict[str, str]
    ports: list[Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:\d+:\d+$")]] = []
    volumes: list[Annotated[str, StringConstraints(pattern=r"^[a-z-]+:/[\w/]+$")]]
    depends_on: dict[str, Dependency] = {}
    healthcheck: Healthcheck | None = None
    deploy: Deploy | None = None


class Compose(Strict):
    """The part of the compose specification that our file uses; any other key is refused, so a typo is found."""

    name: str
    services: dict[str, Service]
    volumes: dict[str, None]


@pytest.fixture(scope="module")
def compose() -> Compose:
    data = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return Compose.model_validate({key: value for key, value in data.items() if not key.startswith("x-")})


CLUSTER_ENV = dict(
    line.split("=", 1) for line in (ROOT / "deploy" / "cluster.env").read_text().splitlines() if line[:1] not in "#"
)


def filled(text: str, given: Mapping[str, str]) -> str:
    """The text with its variables filled in as compose does it."""

    def value(match: re.Match[str]) -> str:
        default, must = match["default"], match["must"]
        found = given.get(match["name"], "")
        assert found or must is None, f"{match['name']}: {must}"
        return found or default or ""

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?(?P<must>[^}]+))?\}", value, text)


def settings_of(service: Service, given: Mapping[str, str]) -> Settings:
    ours = {name: filled(value, given) for name, value in service.environment.items() if name.startswith("STILLHOUSE_")}
    return Settings.load(**{KNOWN[name]: value for name, value in ours.items()})


def test_compose_names_only_what_it_defines(compose: Compose) -> None:
    assert set(compose.services) == {"db", *OURS, *RAYS, "s3"}
    used = set()
    for service in compose.services.values():
        for other, dependency in service.depends_on.items():
            assert dependency.condition != "service_healthy" or compose.services[other].healthcheck is not None
        used |= {volume.partition(":")[0] for volume in service.volumes}
    assert used == set(compose.volumes)
    api, controller = compose.services["api"], compose.services["controller"]
    assert api.volumes == controller.volumes, "they share the home folder"
    assert api.environment == controller.environment, "they share the settings"
    needs_profile = {name for name, service in compose.services.items() if service.profiles}
    assert needs_profile == {*RAYS, "s3"}, "one machine needs neither"
    for service in compose.services.values():
        waits = {name for name in service.depends_on if name in needs_profile}
        assert service.profiles or not waits, "what always runs waits for no profile"


def test_compose_sets_settings_that_exist(compose: Compose) -> None:
    given = {"POSTGRES_PASSWORD": "p"}
    for name in OURS:
        settings = settings_of(compose.services[name], given)
        url = database_url(settings.database_url)
        assert (url.host, url.username) == ("db", compose.services["db"].environment["POSTGRES_USER"])
        assert url.database == compose.services["db"].environment["POSTGRES_DB"]
        assert compose.services[name].volumes[0].partition(":")[2] == str(settings.home)
        assert (settings.engine, settings.artifacts) == ("local", settings.home / "artifacts")
        assert not settings.ray_token


def test_compose_becomes_a_cluster_by_its_variables(compose: Compose) -> None:
    assert CLUSTER_ENV["COMPOSE_PROFILES"] == "cluster"
    given = {"POSTGRES_PASSWORD": "p", "RAY_AUTH_TOKEN": "t", "S3_SECRET_KEY": "s", **CLUSTER_ENV}
    api, worker, s3 = (compose.services[name] for name in ("api", "gpu-worker", "s3"))
    settings = settings_of(api, given)
    assert settings.engine == "ray"
    assert settings.ray_token is not None
    assert filled(worker.environment["RAY_AUTH_TOKEN"], given) == settings.ray_token.get_secret_value() == "t"
    port = Settings.model_fields["port"].default
    assert settings.public_url == f"http://api:{port}"
    assert urlsplit(settings.ray_url).hostname == "ray-head"
    bucket = urlsplit(settings.store_url or "")
    assert bucket.scheme == "s3"
    assert s3.volumes == [f"bucket:/data/{bucket.hostname}"], "a folder is a bucket"
    endpoint = urlsplit(settings.store_endpoint or "")
    assert endpoint.hostname == "s3"
    assert f":{endpoint.port}" in (s3.command or [])
    assert api.environment["AWS_ACCESS_KEY_ID"] == s3.environment["ROOT_ACCESS_KEY"]
    assert api.environment["AWS_SECRET_ACCESS_KEY"] == s3.environment["ROOT_SECRET_KEY"]


def test_workers_hold_no_secret_but_the_token_of_their_cluster(compose: Compose) -> None:
    for name in RAYS:
        environment = compose.services[name].environment
        assert set(environment) <= {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "STILLHOUSE_HOME"}
        assert environment["RAY_AUTH_MODE"] == "token"
    secrets = re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN|KEY)\w*):(.)([^}]*)\}", (ROOT / "docker-compose.yml").read_text())
    assert secrets
    assert all(kind == "?" or not default for _, kind, default in secrets), "no secret has a default"


def test_compose_asks_for_the_password_and_publishes_the_port_that_is_served(compose: Compose) -> None:
    for name, variable in (("db", "POSTGRES_PASSWORD"), ("api", "PGPASSWORD"), ("controller", "PGPASSWORD")):
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", compose.services[name].environment[variable])
    api = compose.services["api"]
    port = Settings.model_fields["port"].default
    assert {name: service.ports for name, service in compose.services.items() if service.ports} == {
        "api": [f"127.0.0.1:{port}:{port}"]
    }
    assert api.healthcheck is not None
    assert f"http://127.0.0.1:{port}/health" in " ".join(api.healthcheck.test)


def test_compose_and_image_call_commands_that_exist(compose: Compose) -> None:
    called = {(compose.services[name].command or [""])[0] for name in OURS}
    dockerfile = (ROOT / "Dockerfile").read_text()
    called |= set(re.findall(r'CMD \["(\w+)"\]', dockerfile))
    assert called
    assert called <= COMMANDS
    assert re.search(r"^USER stillhouse$", dockerfile, re.MULTILINE), "the container does not run as root"
    assert re.search(r"\[[\w,]*\bs3,ray\b[\w,]*\]", dockerfile), "the image serves every role"


def test_ray_is_called_with_options_that_it_knows(compose: Compose) -> None:
    if not program().exists():
        missing = "Ray is not installed: pip install 'stillhouse[ray]'"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    shown = subprocess.run([program(), "start", "--help"], capture_output=True, text=True, check=True).stdout
    for name in RAYS:
        service = compose.services[name]
        words = [*(service.entrypoint or []), *(service.command or [])]
        assert words[:2] == ["ray", "start"]
        options = {word.partition("=")[0] for word in words[2:]}
        assert options <= set(re.findall(r"--[\w-]+", shown))


def test_a_parser_of_compose_files_accepts_ours_and_refuses_a_fault() -> None:
    data = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    PyCompose.from_yaml(yaml.safe_dump(data)).validate()
    data["services"]["api"]["restarts"] = "always"
    with pytest.raises(Exception, match="restarts"):
        PyCompose.from_yaml(yaml.safe_dump(data)).validate()


# ---------------------------------------------------------------------------------------- Kubernetes


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name."""
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(found) == len(documents)
    return found


def test_the_manifests_fit_together(manifests: dict[tuple[str, str], dict[str, Any]]) -> None:
    given = manifests["ConfigMap", "stillhouse"]["data"]
    settings = Settings.load(**{KNOWN[name]: value for name, value in given.items()})
    (ray,) = (name for kind, name in manifests if kind == "RayCluster")
    assert settings.engine == "ray"
    assert settings.ray_url == f"http://{ray}-head-svc:8265"
    (service,) = (name for kind, name in manifests if kind == "Service")
    port = Settings.model_fields["port"].default
    assert settings.public_url == f"http://{service}:{port}"
    assert manifests["Service", service]["spec"]["ports"] == [{"port": port, "targetPort": port}]
    deployments = [document["spec"] for (kind, _), document in manifests.items() if kind == "Deployment"]
    assert manifests["Service", service]["spec"]["selector"] in [
        each["selector"]["matchLabels"] for each in deployments
    ]
    called = set()
    for spec in deployments:
        assert spec["template"]["metadata"]["labels"] == spec["selector"]["matchLabels"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"}), (
            "one controller, one writer of uploads"
        )
        (container,) = spec["template"]["spec"]["containers"]
        called |= set(container["args"])
        assert [entry["secretRef"]["name"] for entry in container["envFrom"] if "secretRef" in entry] == ["stillhouse"]
        token = next(entry for entry in container["env"] if entry["name"] == "STILLHOUSE_RAY_TOKEN")
        assert token["valueFrom"]["secretKeyRef"] == {"name": ray, "key": "auth_token"}
        assert container["volumeMounts"] == [{"name": "home", "mountPath": given["STILLHOUSE_HOME"]}]
    assert called == {"serve", "controller"} <= COMMANDS


def test_the_ray_cluster_asks_for_a_token_and_its_head_runs_no_stage(
    manifests: dict[tuple[str, str], dict[str, Any]],
) -> None:
    spec = manifests["RayCluster", "stillhouse-ray"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0), "the first with tokens"
    assert spec["headGroupSpec"]["rayStartParams"].items() >= {"num-cpus": "0", "num-gpus": "0"}.items()
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    settings = manifests["ConfigMap", "stillhouse"]["data"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert int(worker["resources"]["limits"]["cpu"]) >= int(settings["STILLHOUSE_RAY_CPUS_PER_STAGE"])
    for container in (worker, *spec["headGroupSpec"]["template"]["spec"]["containers"]):
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        assert "envFrom" not in container
        assert all("valueFrom" not in entry for entry in container.get("env", [])), "workers hold no secret of ours"
