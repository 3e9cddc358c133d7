"""The API keeps what its OpenAPI document promises, whatever is sent to it (Schemathesis, in this process).

Left out: that what fits the schema is accepted (a budget that nothing meets and a name that no catalogue holds fit the
schema and are 422).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from served import CATALOGUE
from stillhouse.search.plan import ingest_plan
from stillhouse.service.accounts import READ, WRITE, create_key
from stillhouse.service.app import create_app
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "8"))


def served(home: Path) -> tuple[Any, str]:
    """The application over a ledger in memory, and a key."""
    ledger = MemoryLedger()
    ledger.publish_catalogue(CATALOGUE)
    ledger.add_dataset("textures", ingest_plan("textures", "textures", False, {"ingest": "1"}))
    accounts, now = ledger.accounts, time.time()
    _, secret = create_key(accounts, "n", tenant="default", scopes=[READ, WRITE], now=now, expires_at=None)
    plenty = {"requests_per_s": 1e6, "request_burst": 10**6, "max_upload_bytes": 10**6}
    return create_app(ledger, DiskStore(home / "artifacts"), Settings.load(home=home, **plenty)), secret


schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
HOME = tempfile.TemporaryDirectory(prefix="stillhouse-")
APP, SECRET = served(Path(HOME.name))
KEY = {"Host": "127.0.0.1", "Authorization": f"Bearer {SECRET}"}
schema = schemathesis.openapi.from_asgi("/openapi.json", APP, headers=KEY)


@pytest.fixture(scope="module", autouse=True)
def _swept() -> Iterator[None]:
    yield
    HOME.cleanup()


def _test_of(operation_id: str) -> Any:
    """The test of one operation, as a function of its own: Schemathesis gives all that one function makes one name."""

    @schema.include(operation_id=operation_id).parametrize()
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def test(case: schemathesis.Case) -> None:
        headers = {"Host": "127.0.0.1"} if case.path.startswith("/attempts/") else KEY
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

    return test


OPERATIONS = [operation.ok().definition.raw["operationId"] for operation in schema.get_all_operations()]
globals().update({f"test_{operation_id}": _test_of(operation_id) for operation_id in OPERATIONS})


def test_every_operation_has_its_test() -> None:
    assert len(set(OPERATIONS)) == sum(len(item) for item in schema.values()) > 30
