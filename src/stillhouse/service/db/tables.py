"""The tables, as typed SQLAlchemy classes; nothing outside ``service.db`` sees them.

::

    stages <-- datasets <-- jobs <-- trials
       ^                     ^---- deployments
       +---- attempts        +---- events            catalogue (one row), identity (one row),
                                                      devices, keys, audit

Data sets and jobs belong to a tenant, and what hangs on a job with it; stages are shared by content.

Times are Unix seconds. A partial unique index holds the promise that a stage has at most one open attempt.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from stillhouse.search.domain import Json


class Base(DeclarativeBase):
    """Maps Python types to column types, and names every constraint so that migrations can."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        float: Double(),
        dict[str, Json]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


class StageRow(Base):
    """One unit of work, by content key."""

    __tablename__ = "stages"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    plan: Mapped[dict[str, Json]]
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempts: Mapped[int] = mapped_column(Integer)
    result: Mapped[dict[str, Json] | None]
    reason: Mapped[str | None] = mapped_column(Text)
    faults: Mapped[list[str]]
    seconds: Mapped[float | None]
    created_at: Mapped[float]
    not_before: Mapped[float | None]


class AttemptRow(Base):
    """One try at a stage, held under a lease; the job and the trial that asked first may be gone since."""

    __tablename__ = "attempts"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    stage_key: Mapped[str] = mapped_column(ForeignKey("stages.key"), index=True)
    token: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    expires_at: Mapped[float]
    threads: Mapped[int] = mapped_column(Integer)
    slots: Mapped[int] = mapped_column(Integer, server_default="1")
    progress: Mapped[dict[str, Json]]
    opened_at: Mapped[float]
    ended_at: Mapped[float | None]
    job_id: Mapped[str | None] = mapped_column(String(32))
    trial_number: Mapped[int | None] = mapped_column(Integer)

    __table_args__ = (
        Index(
            "uq_attempts_open",
            "stage_key",
            unique=True,
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
    )


class DatasetRow(Base):
    """A data set and the ingest stage that makes it."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(32), index=True)
    source_bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(Text)
    stage_key: Mapped[str] = mapped_column(ForeignKey("stages.key"), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    faults: Mapped[list[str]]
    summary: Mapped[dict[str, Json]]
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("tenant", "stage_key"),)


class JobRow(Base):
    """A search that a user asked for; ``body_hash`` tells a repeated request from another one."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(32), index=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    spec: Mapped[dict[str, Json]]
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    body_hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (
        UniqueConstraint("tenant", "idempotency_key"),
        Index("ix_jobs_tenant_created_at_id", "tenant", "created_at", "id"),
    )


class TrialRow(Base):
    """One candidate of one job."""

    __tablename__ = "trials"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    candidate: Mapped[dict[str, Json]]
    state: Mapped[str] = mapped_column(String(16))
    cost: Mapped[dict[str, Json]]
    stages: Mapped[list[str]]
    accuracy: Mapped[float | None]
    epochs: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_trials_counted", "job_id", "state", "accuracy"),)


class DeploymentRow(Base):
    """A trained student as one ONNX file; the test counts stay null until they are read, once."""

    __tablename__ = "deployments"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    trial_number: Mapped[int] = mapped_column(Integer)
    candidate: Mapped[dict[str, Json]]
    cost: Mapped[dict[str, Json]]
    precision: Mapped[str] = mapped_column(String(16))
    validation_correct: Mapped[int] = mapped_column(Integer)
    validation_total: Mapped[int] = mapped_column(Integer)
    test_correct: Mapped[int | None] = mapped_column(Integer)
    test_total: Mapped[int | None] = mapped_column(Integer)
    onnx_sha256: Mapped[str] = mapped_column(String(64))
    preprocess: Mapped[dict[str, Json]]
    details: Mapped[dict[str, Json]]
    created_at: Mapped[float]

    __table_args__ = (Index("ix_deployments_created_at_id", "created_at", "id"),)


class EventRow(Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Json]]

    __table_args__ = (
        Index("ix_events_job_id_id", "job_id", "id"),
        # SQLite would otherwise hand an id out again after a deletion, and a replay would skip the event.
        {"sqlite_autoincrement": True},
    )


class CatalogueRow(Base):
    """What the workers can build: one row, replaced whole."""

    __tablename__ = "catalogue"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[dict[str, Json]]
    published_at: Mapped[float]


class DeviceRow(Base):
    """A device that measures, as it last announced itself."""

    __tablename__ = "devices"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    runtime: Mapped[str] = mapped_column(Text)
    measure: Mapped[str] = mapped_column(String(64))
    host: Mapped[dict[str, Json]]
    seen_at: Mapped[float]


class IdentityRow(Base):
    """The ledger's own name: one row, never changed."""

    __tablename__ = "identity"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(32))


class KeyRow(Base):
    """An API key: what is known of it, and the hash of its secret. Rows are kept when keys are revoked."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]]
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class AuditRow(Base):
    """A request that was let in and may have changed something."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    at: Mapped[float]
    key_id: Mapped[str | None] = mapped_column(String(32))
    tenant: Mapped[str] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(Text)
    status: Mapped[int] = mapped_column(Integer)
    request_id: Mapped[str] = mapped_column(String(32))

    __table_args__ = (Index("ix_audit_tenant_id", "tenant", "id"), {"sqlite_autoincrement": True})
