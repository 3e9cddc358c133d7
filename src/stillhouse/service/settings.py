"""What an operator can set, by environment variables that begin with ``STILLHOUSE_``.

The description of each field is its documentation: the reference page is made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stillhouse.search.errors import UserError

_PREFIX = "STILLHOUSE_"

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
        description="Stages that run at once on this machine. By default one for each visible GPU, or 1 without a GPU.",
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
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="How often a stage is tried whose process dies before the stage is given up.",
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
    def artifacts(self) -> Path:
        """Folder of the artifact store."""
        return self.home / "artifacts"

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
