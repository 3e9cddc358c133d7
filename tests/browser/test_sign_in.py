"""Signing in and out, as a person does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from seen import Page

from stillhouse.service.accounts import READ, WRITE, create_key
from stillhouse.service.app import create_app
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore


def test_a_person_signs_in_and_out(page: Page, tmp_path: Path, live: Callable[[FastAPI], str]) -> None:
    ledger, now = MemoryLedger(), time.time()
    _, secret = create_key(ledger.accounts, "n", tenant="default", scopes=[READ, WRITE], now=now, expires_at=None)
    base = live(create_app(ledger, DiskStore(tmp_path / "a"), Settings.load(home=tmp_path)))
    chrome, address = page.browser, f"{base}/ui/new"
    page.open(address)
    assert "Sign in" in chrome.title
    page.first("#key").send_keys("sth_wrong")
    page.first("main button").click()
    page.wait(lambda: "unknown" in page.first("main").text)
    page.picture("sign-in")
    page.open(address)
    page.first("#key").send_keys(secret)
    page.first("main button").click()
    page.wait(lambda: chrome.current_url == address and "Sign in" not in chrome.title)
    assert chrome.execute_script("return document.cookie") == "", "scripts cannot read it"
    (cookie,) = chrome.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], "expiry" in cookie) == (True, "Strict", False)
    page.first("header form button").click()
    page.wait(lambda: "Sign in" in chrome.title)
    assert chrome.get_cookies() == []
    page.complaints()  # the browser notes each 401
