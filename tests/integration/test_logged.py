"""A whole session at the API, failures included: no line that is logged holds a secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from keys import bearer, every_route, make_key
from served import Served
from stillhouse.service import logs

PASSWORD = "S3cret-of-the-database"  # noqa: S105 - a test's


@pytest.fixture
def configured() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure()
    root.setLevel(logging.DEBUG)
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("configured")
def test_no_line_of_a_session_holds_a_secret(
    served: Served, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = served.ready()
    secret = make_key(served)
    attempt = served.ledger.open_attempt(served.ledger.dataset(dataset).stage_key, lease_s=30, threads=1)
    assert attempt is not None
    job = served.http.post("/jobs", json={"dataset": dataset}, headers=bearer(secret)).json()["id"]
    served.http.get(f"/attempts/{attempt.id}", headers=bearer(attempt.token))
    served.http.get(f"/attempts/{attempt.id}", headers=bearer(attempt.token[:-1]))
    served.http.post("/sign-in", data={"key": secret})
    served.http.post("/sign-in", data={"key": secret[:-1]})
    for method, path in every_route(served.http.app.routes):  # type: ignore[attr-defined]
        for headers in (bearer(secret), bearer(secret + "x"), {}):
            served.http.request(method, path, headers=headers)

    def fails(*_: object, **__: object) -> None:
        raise OSError(f"postgresql://me:{PASSWORD}@host/db password={PASSWORD} {bearer(secret)} token={attempt.token}")

    monkeypatch.setattr(served.ledger, "deployments", fails)
    monkeypatch.setattr(served.ledger.accounts, "log", fails)
    assert served.http.get(f"/jobs/{job}/pareto", headers=bearer(secret)).status_code == 500
    served.http.post(f"/jobs/{job}/cancel", headers=bearer(secret))
    monkeypatch.setattr(served.ledger.accounts, "find", fails)
    answer = served.http.get("/jobs", headers=bearer(secret))
    logging.getLogger("a.library").error("failed with %s", bearer(secret))
    out = "".join(capfd.readouterr())
    for what in (out, answer.text):
        for hidden in (secret.split("_", 2)[2], attempt.token, PASSWORD):
            assert hidden not in what
    for line in ("unexpected error", "the audit log was not written", "refused", "failed with", "postgresql://me:"):
        assert line in out
    assert "request_id=" in out
