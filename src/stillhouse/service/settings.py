"""What an operator can set, by environment variables that begin with ``STILLHOUSE_``.

The description of each field is its documentation: the reference page is made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stillhouse.search.errors import UserError

_PREFIX = "STILLHOUSE_"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine for itself."""

Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A path with ``~`` and the working folder filled in, so that every process means the same one."""


def _default_database_url(data: dict[str, Any]) -> str:
    return f"sqlite:///{data['home'] / 'stillhouse.db'}" if "home" in data else ""


class Settings(BaseSettings):
    """Settings of every process of one Stillhouse; frozen."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=None, extra="forbid", frozen=True, validate_default=True
    )

    home: Folder = Field(
        default=Path("~/.stillhouse"),
        description="Folder that everything is kept under: artifacts, caches, logs and the SQLite database.",
    )
    database_url: str = Field(
        default_factory=_default_database_url,
        description="The database: sqlite:////folder/file.db, or postgresql://user:password@host/name. "
        "By default the file stillhouse.db in the home folder.",
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Stages that run at once on this machine, at most. By default one for each visible GPU, or 1 "
        "without a GPU. Where three or more are idle and there is no GPU, a teacher or an assistant that trials wait "
        "for takes two.",
    )
    store_url: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^(s3://[^/]+|file:///|[^:]+$)",
        description="Where artifacts are kept: a folder, or s3://bucket/prefix. By default the folder artifacts in the "
        "home folder. The keys of a bucket are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )
    store_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="Address of a store that speaks S3 and is not Amazon's.",
    )
    engine: Literal["local", "ray"] = Field(
        default="local",
        description="Where stages run: local (this machine) or ray (a Ray cluster).",
    )
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="Address at which workers on other machines reach this API. By default port on this machine.",
    )
    ray_url: str = Field(
        default="http://127.0.0.1:8265",
        pattern=r"^https?://",
        description="Address of the Ray head's dashboard, which takes jobs.",
    )
    ray_token: SecretStr | None = Field(
        default=None,
        description="The Ray cluster's token, where it runs with RAY_AUTH_MODE=token.",
    )
    ray_gpus_per_stage: float = Field(
        default=1.0,
        ge=0,
        le=64,
        description="GPUs of a Ray node that each stage gets; 0.5 lets two stages share one.",
    )
    ray_cpus_per_stage: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="CPU cores of a Ray node that each stage gets, and its threads.",
    )
    lease_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds that a stage's process may go without a heartbeat before its stage is given to another.",
    )
    heartbeat_s: float = Field(
        default=2.0,
        gt=0,
        description="Seconds between two heartbeats of a stage's process; must be less than a third of lease_s.",
    )
    checkpoint_every_s: float = Field(
        default=60.0,
        ge=0,
        description="Seconds between two checkpoints that a stage on another machine sends here; should that machine "
        "vanish, another goes on from the last. On this machine every epoch's checkpoint counts.",
    )
    max_attempts: int = Field(
        default=5,
        ge=1,
        le=100,
        description="How often a stage is tried whose process dies, with growing pauses, before it is given up.",
    )
    stage_memory_bytes: int | None = Field(
        default=None,
        ge=2**20,
        description="Memory that the processes of one stage may hold on this machine, in bytes; one that holds more is "
        "ended, and its stage fails. By default there is no limit. Linux only.",
    )
    least_free_bytes: int = Field(
        default=2**29,
        ge=0,
        description="Free space on the home folder's disk, in bytes, below which no stage is started: jobs wait until "
        "there is room again. An upload that would leave less is refused.",
    )
    keep_unused_days: float = Field(
        default=30.0,
        ge=0,
        description="Days after its last use that what no job, data set or model needs any more is removed: stages "
        "with their files, uploads, logs and decoded pictures. What is younger than an hour always stays.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address that the API listens on. The default can be reached from this machine only.",
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="Port that the API listens on; 0 takes any free one.",
    )
    hub: Literal["auto", "off"] = Field(
        default="auto",
        description="Whether pretrained weights may be fetched from the model hub: auto (when it answers) or off.",
    )
    allowed_folder: Folder | None = Field(
        default=None,
        description="Folder under which the API may read data sets by path. By default none: they are uploaded.",
    )
    max_upload_bytes: int = Field(
        default=4 * 2**30,
        ge=1,
        description="Greatest size of an uploaded data set, in bytes.",
    )

    allowed_hosts: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9.,:_ \-\[\]]*$",
        description="Names, parted by commas, that a request may call this server by (header Host), beside those of "
        "this machine. By default any name, or only those of this machine while the API listens on loopback.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="Form of the log's lines: json, text, or auto, which is text on a terminal and JSON elsewhere.",
    )
    metrics_listen: str | None = Field(
        default=None,
        pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$",
        description="Address (host:port) at which a controller without an API serves its own metrics, to anybody who "
        "reaches it. By default none; where API and controller are one process, GET /metrics has them.",
    )
    requests_per_s: float = Field(
        default=50.0,
        gt=0,
        description="Requests a second that each API key, and each address without one, may send in the long run.",
    )
    request_burst: int = Field(
        default=1000,
        ge=1,
        description="Requests that each API key, and each address without one, may send at once.",
    )
    max_live_jobs_per_key: int | None = Field(
        default=None,
        ge=0,
        description="Jobs made with one API key that may be queued or running at once. By default any number.",
    )
    max_dataset_bytes_per_key: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that the data sets uploaded with one API key may have together. By default any number.",
    )

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Settings:
        if not self.heartbeat_s < self.lease_s / 3:
            raise ValueError(
                "heartbeat_s < lease_s / 3 must hold, so that a lease outlives two lost heartbeats, "
                f"but got heartbeat_s={self.heartbeat_s:g} and lease_s={self.lease_s:g}"
            )
        return self

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """Reads the environment; what is given goes before it.

        Raises:
            UserError: A setting is malformed; the message names its variable.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            lines = [_line(fault["loc"], fault["msg"], fault["input"]) for fault in error.errors()]
            raise UserError("; ".join(lines)) from error

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that a request may call this server by; None for any."""
        named = frozenset(name.strip().lower().strip("[]") for name in self.allowed_hosts.split(",") if name.strip())
        return LOOPBACK | named if named or self.host in LOOPBACK else None

    @property
    def artifacts(self) -> Path:
        """Folder of the artifact store, or of the copies of one in a bucket."""
        if self.store_url is None or self.store_url.startswith("s3://"):
            return self.home / "artifacts"
        return Path(self.store_url.removeprefix("file://")).expanduser().absolute()

    @property
    def cache(self) -> Path:
        """Folder of what can be made again: decoded pictures and the like."""
        return self.home / "cache"

    @property
    def work(self) -> Path:
        """Folder of unfinished stages: their checkpoints."""
        return self.home / "work"

    @property
    def logs(self) -> Path:
        """Folder of one log an attempt."""
        return self.home / "logs"

    @property
    def uploads(self) -> Path:
        """Folder of uploaded data sets."""
        return self.home / "uploads"

    def make_folders(self) -> None:
        """Makes the home folder and those in it.

        Raises:
            UserError: They cannot be made.
        """
        for folder in (self.artifacts, self.cache, self.work, self.logs, self.uploads):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"the home folder must be writable, but {folder} cannot be made ({error.strerror}); "
                    f"set {_PREFIX}HOME to another folder"
                ) from error


def _line(place: tuple[int | str, ...], message: str, came: object) -> str:
    if not place:
        return message.removeprefix("Value error, ")
    return f"{_PREFIX}{str(place[0]).upper()}: {message}, but got {came!r}"
