"""A real server that speaks S3, in this process, and a fresh bucket for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store


@dataclass(frozen=True)
class Bucket:
    """A bucket with a prefix: its URL, and the address of its server."""

    endpoint: str
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}/under/here"

    def objects(self) -> S3Store:
        """A client of the bucket itself."""
        options = {"allow_http": True}
        return S3Store(self.name, endpoint=self.endpoint, region="us-east-1", client_options=options)  # type: ignore[arg-type]

    def place(self, sha256: str) -> str:
        return f"under/here/{sha256[:2]}/{sha256[2:]}"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = Bucket(s3_endpoint, f"bucket-{os.urandom(4).hex()}")
    httpx.put(f"{s3_endpoint}/{found.name}").raise_for_status()
    return found
