"""Uploads in pieces: they go on after a break and a restart, and what is wrong is refused."""

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from keys import bearer, make_key
from served import Serve, Served, problem
from stillhouse.search.errors import AwayError
from stillhouse.service.resumable import MOST_AGE_S


def zipped(size: int = 30_000) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/1.png", os.urandom(size))
    return buffer.getvalue()


def offer(served: Served, content: bytes, **more: object) -> dict[str, object]:
    body = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **more}
    answer = served.http.post("/uploads", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/uploads/{answer.json()['id']}"
    return dict(answer.json())


def send(served: Served, upload: object, at: int, data: bytes) -> object:
    return served.http.patch(f"/uploads/{upload}", content=data, headers={"Upload-Offset": str(at)})


def test_an_upload_goes_on_after_a_restart(serve: Serve) -> None:
    content, served = zipped(), serve()
    made = offer(served, content)
    assert (made["offset"], made["size"]) == (0, len(content))
    assert send(served, made["id"], 0, content[:10_000]).json()["offset"] == 10_000  # type: ignore[attr-defined]
    later = serve()
    told = later.http.head(f"/uploads/{made['id']}")
    assert (told.headers["upload-offset"], told.headers["upload-length"]) == ("10000", str(len(content)))
    assert offer(later, content) == {**made, "offset": 10_000}, "the same offer is the same upload"
    send(later, made["id"], 10_000, content[10_000:])
    answer = later.http.post(f"/uploads/{made['id']}/complete", json={"name": "birds", "skip_faults": True})
    assert (answer.status_code, answer.json()["name"]) == (202, "birds")
    (stage,) = later.ledger.stages([later.ledger.dataset(answer.json()["id"]).stage_key]).values()
    assert stage.plan.spec == {"digest": hashlib.sha256(content).hexdigest(), "skip_faults": True}
    assert Path(stage.plan.hints["source"]).read_bytes() == content
    problem(later.http.get(f"/uploads/{made['id']}"), 404)
    assert [path.suffix for path in later.settings.uploads.iterdir()] == [".zip"]


def test_pieces_that_do_not_fit_are_refused(served: Served) -> None:
    content = zipped(100)
    upload = offer(served, content)["id"]
    wrong = send(served, upload, 5, b"x")
    assert "go on from there" in problem(wrong, 409)
    assert wrong.headers["upload-offset"] == "0"  # type: ignore[attr-defined]
    assert "more came" in problem(send(served, upload, 0, content + b"x"), 422)
    assert "bytes are missing" in problem(served.http.post(f"/uploads/{upload}/complete", json={}), 409)
    problem(served.http.patch(f"/uploads/{upload}", content=b"x"), 422)
    assert served.http.delete(f"/uploads/{upload}").status_code == 204
    problem(send(served, upload, 0, b"x"), 404)
    for name in ("no", "..%2F..%2Fetc", "upl_" + "0" * 32):
        problem(served.http.get(f"/uploads/{name}"), 404)


@pytest.mark.parametrize("content", [b"no zip", zipped(50)])
def test_other_bytes_than_offered_leave_nothing(content: bytes, served: Served) -> None:
    sha256 = hashlib.sha256(content if content == b"no zip" else b"other").hexdigest()
    made = served.http.post("/uploads", json={"size": len(content), "sha256": sha256}).json()
    send(served, made["id"], 0, content)
    assert "zip" in problem(served.http.post(f"/uploads/{made['id']}/complete", json={}), 422)
    assert list(served.settings.uploads.iterdir()) == []
    assert served.ledger.datasets() == []


def test_offers_have_limits(serve: Serve) -> None:
    served = serve(max_upload_bytes=1000)
    for body, told in (
        ({"size": 1001, "sha256": "0" * 64}, "1000"),
        ({"size": 0, "sha256": "0" * 64}, "size"),
        ({"size": 5, "sha256": "x"}, "hex"),
        ({"size": 5}, "sha256"),
    ):
        assert told in problem(served.http.post("/uploads", json=body), 422)


def test_what_nobody_goes_on_with_is_removed_after_a_day(served: Served) -> None:
    old, new = offer(served, zipped(10))["id"], offer(served, zipped(11))["id"]
    long_ago = time.time() - MOST_AGE_S - 1
    os.utime(served.settings.uploads / f"{old}.part", (long_ago, long_ago))
    offer(served, zipped(12))  # or a start of the server
    problem(served.http.get(f"/uploads/{old}"), 404)
    assert served.http.get(f"/uploads/{new}").status_code == 200
    assert not list(served.settings.uploads.glob(f"{old}*"))


def test_what_could_not_be_stored_can_be_completed_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped()
    upload = offer(served, content)["id"]
    send(served, upload, 0, content)
    store = type(served.ledger).add_dataset

    def away(*_: object, **__: object) -> None:
        raise AwayError("the database is away")

    monkeypatch.setattr(type(served.ledger), "add_dataset", away)
    assert "nothing is lost" in problem(served.http.post(f"/uploads/{upload}/complete", json={}), 503)
    monkeypatch.setattr(type(served.ledger), "add_dataset", store)
    answer = served.http.post(f"/uploads/{upload}/complete", json={})
    assert answer.status_code == 202
    (stage,) = served.ledger.stages([served.ledger.dataset(answer.json()["id"]).stage_key]).values()
    assert Path(stage.plan.hints["source"]).read_bytes() == content
    assert [path.suffix for path in served.settings.uploads.iterdir()] == [".zip"]


def test_open_uploads_count_in_the_quota(serve: Serve) -> None:
    served = serve(max_dataset_bytes_per_key=100_000)
    one, two = (bearer(make_key(served)) for _ in range(2))

    def offered(size: int, key: dict[str, str], digit: str = "a") -> httpx.Response:
        return served.http.post("/uploads", json={"size": size, "sha256": digit * 64}, headers=key)

    assert "100000 bytes together; 0 are used" in problem(offered(100_001, one), 403)
    first = offered(60_000, one)
    assert first.status_code == 201
    assert offered(60_000, one).json() == first.json(), "the same offer is not counted twice"
    said = problem(offered(40_001, one, "b"), 403)
    assert "60000 are used, and this one would add 40001" in said
    assert offered(40_000, one, "b").status_code == 201, "together they fit"
    assert offered(60_000, two, "c").status_code == 201, "another key's are its own"
    form = served.http.post("/datasets", files={"file": ("a.zip", zipped(1000))}, headers=one)
    problem(form, 403)
    assert served.http.delete(f"/uploads/{first.json()['id']}", headers=one).status_code == 204
    assert offered(60_000, one, "d").status_code == 201


def test_two_offers_at_once_do_not_both_slip_through(serve: Serve, race: Callable[..., list[int]]) -> None:
    served = serve(max_dataset_bytes_per_key=100_000)
    key = bearer(make_key(served))

    def offered(index: int) -> int:
        body = {"size": 60_000, "sha256": f"{index:064x}"}
        return served.http.post("/uploads", json=body, headers=key).status_code

    assert sorted(race(offered, 4)) == [201, 403, 403, 403]


def test_a_completed_upload_counts_once(serve: Serve) -> None:
    served, content = serve(max_dataset_bytes_per_key=50_000), zipped(30_000)
    key = bearer(make_key(served))
    body = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    made = served.http.post("/uploads", json=body, headers=key).json()["id"]
    served.http.patch(f"/uploads/{made}", content=content, headers={"Upload-Offset": "0", **key})
    part = served.settings.uploads / f"{made}.part"
    os.utime(part, (1, 1))
    assert served.http.post(f"/uploads/{made}/complete", json={}, headers=key).status_code == 202
    kept = served.settings.uploads / f"{body['sha256']}.zip"
    assert time.time() - kept.stat().st_mtime < 60, "a zip that no data set names yet must not look old"
    rest = 50_000 - len(content)
    small = {"size": rest + 1, "sha256": "b" * 64}
    problem(served.http.post("/uploads", json=small, headers=key), 403)
    assert served.http.post("/uploads", json=small | {"size": rest}, headers=key).status_code == 201
