"""The KubeRay manifests hold the keys of Kubernetes that we mean and no others: a misspelt one would be passed over."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

ROOT = Path(__file__).parents[2]
PLAIN = ("data", "limits", "requests", "rayStartParams", "matchLabels", "labels", "selector")
"""Mappings whose keys are names of ours, in which none can be misspelt; what they must hold, test_deploy says."""


class Strict(BaseModel):
    """A mapping that takes the keys named here and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Place = Annotated[str, StringConstraints(pattern=r"^/[\w/-]+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(m|Ki|Mi|Gi|Ti)?$")]
Count = Annotated[int, Field(ge=1)]


class Metadata(Strict):
    name: Name


class Named(Strict):
    name: Name


class SecretKey(Strict):
    name: Name
    key: str


class Origin(Strict):
    secretKeyRef: SecretKey  # noqa: N815 - so it is spelt


class PlainVariable(Strict):
    name: Variable
    value: str


class SecretVariable(Strict):
    name: Variable
    valueFrom: Origin  # noqa: N815


class FromConfig(Strict):
    configMapRef: Named  # noqa: N815


class FromSecret(Strict):
    secretRef: Named  # noqa: N815


class ContainerPort(Strict):
    containerPort: Port  # noqa: N815
    name: Name | None = None


class HttpGet(Strict):
    path: Place
    port: Port


class Probe(Strict):
    httpGet: HttpGet  # noqa: N815
    initialDelaySeconds: Count | None = None  # noqa: N815
    periodSeconds: Count | None = None  # noqa: N815
    timeoutSeconds: Count | None = None  # noqa: N815
    failureThreshold: Count | None = None  # noqa: N815


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu", "storage"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity] | None = None


class Mount(Strict):
    name: Name
    mountPath: Place  # noqa: N815


class Container(Strict):
    name: Name
    image: str
    args: list[str] | None = None
    ports: list[ContainerPort] = []
    env: list[PlainVariable | SecretVariable] = []
    envFrom: list[FromConfig | FromSecret] = []  # noqa: N815
    readinessProbe: Probe | None = None  # noqa: N815
    livenessProbe: Probe | None = None  # noqa: N815
    resources: Resources | None = None
    volumeMounts: list[Mount] = []  # noqa: N815


class EmptyDir(Strict):
    pass


class Claim(Strict):
    claimName: Name  # noqa: N815


class EmptyVolume(Strict):
    name: Name
    emptyDir: EmptyDir  # noqa: N815


class ClaimedVolume(Strict):
    name: Name
    persistentVolumeClaim: Claim  # noqa: N815


class SecurityContext(Strict):
    runAsNonRoot: Literal[True]  # noqa: N815
    runAsUser: Count  # noqa: N815
    fsGroup: Count  # noqa: N815


class Pod(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[EmptyVolume | ClaimedVolume] = []
    securityContext: SecurityContext | None = None  # noqa: N815
    terminationGracePeriodSeconds: Count | None = None  # noqa: N815


class Labels(Strict):
    labels: dict[str, str]


class Template(Strict):
    metadata: Labels | None = None
    spec: Pod


class Selector(Strict):
    matchLabels: dict[str, str]  # noqa: N815


class Strategy(Strict):
    type: Literal["Recreate", "RollingUpdate"]


class DeploymentSpec(Strict):
    replicas: Count
    strategy: Strategy
    selector: Selector
    template: Template


class Deployment(Strict):
    apiVersion: Literal["apps/v1"]  # noqa: N815
    kind: Literal["Deployment"]
    metadata: Metadata
    spec: DeploymentSpec


class ServicePort(Strict):
    port: Port
    targetPort: Port  # noqa: N815


class ServiceSpec(Strict):
    selector: dict[str, str]
    ports: list[ServicePort]


class Service(Strict):
    apiVersion: Literal["v1"]  # noqa: N815
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceSpec


class ConfigMap(Strict):
    apiVersion: Literal["v1"]  # noqa: N815
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[Variable, str]


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadWriteMany"]]  # noqa: N815
    resources: Resources


class VolumeClaim(Strict):
    apiVersion: Literal["v1"]  # noqa: N815
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class Head(Strict):
    rayStartParams: dict[Name, str]  # noqa: N815
    template: Template


class Workers(Strict):
    groupName: Name  # noqa: N815
    replicas: Count
    minReplicas: Count  # noqa: N815
    maxReplicas: Count  # noqa: N815
    rayStartParams: dict[Name, str]  # noqa: N815
    template: Template


class RaySpec(Strict):
    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    headGroupSpec: Head  # noqa: N815
    workerGroupSpecs: list[Workers]  # noqa: N815


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RaySpec


Manifest: TypeAdapter[Any] = TypeAdapter(
    Annotated[RayCluster | Service | ConfigMap | VolumeClaim | Deployment, Field(discriminator="kind")]
)
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))


def pods(value: Any) -> Iterator[Pod]:
    """All pods of a manifest."""
    if isinstance(value, Pod):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from pods(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


def test_the_manifests_hold_what_they_may() -> None:
    read = [Manifest.validate_python(document) for document in DOCUMENTS]
    claims = {each.metadata.name for each in read if isinstance(each, VolumeClaim)}
    found = [pod for each in read for pod in pods(each)]
    assert len(found) == 4
    for pod in found:
        volumes = {volume.name for volume in pod.volumes}
        assert {mount.name for one in pod.containers for mount in one.volumeMounts} == volumes
        assert {
            each.persistentVolumeClaim.claimName for each in pod.volumes if isinstance(each, ClaimedVolume)
        } <= claims


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each key of Kubernetes' own stands."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            if key not in PLAIN:
                yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


KEYS = [(number, path) for number, document in enumerate(DOCUMENTS) for path in places(document)]


def test_a_misspelt_key_is_found_wherever_it_stands() -> None:
    assert len(KEYS) > 150
    for number, path in KEYS:
        document = copy.deepcopy(DOCUMENTS[number])
        holder: Any = document
        for step in path[:-1]:
            holder = holder[step]
        holder[f"{path[-1]}s"] = holder.pop(path[-1])
        with pytest.raises(ValidationError):
            Manifest.validate_python(document)
