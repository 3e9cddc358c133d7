"""A Chromium of the tests' own, what a person sees in it, and a server with jobs to look at."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from selenium import webdriver

from stillhouse.search.domain import Accuracy, Budget, Candidate, Cost, Deployment, Size
from stillhouse.search.job import JobSpec
from stillhouse.search.plan import ingest_plan
from stillhouse.service.app import create_app
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

sys.path.insert(0, str(Path(__file__).parent))  # test modules of this folder share seen.py
from seen import HOSTILE, Page, Site

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1400",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "no chromium and chromedriver found; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: webdriver.Chrome) -> Iterator[Page]:
    seen = Page(browser)
    yield seen
    seen.desk()
    seen.dark(False)
    browser.get("about:blank")  # a page that goes on asking would complain into the next test
    seen.complaints()


def filled(root: Path) -> tuple[MemoryLedger, DiskStore, str, str]:
    """One job done with six models, one running with none."""
    ledger, store = MemoryLedger(), DiskStore(root / "artifacts")
    dataset = ledger.add_dataset(HOSTILE, ingest_plan("x", "x", False, {}))
    budget = Budget(max_macs=60_000_000, max_image_size=Size(64, 64))
    done, running = (ledger.add_job(JobSpec(dataset.id, budget=budget, seed=seed, trials=6)).id for seed in (0, 1))
    path = root / "model.onnx"
    path.write_bytes(b"the bytes of a model")
    sha = store.put(path)
    for number in range(6):
        candidate = Candidate("lcnet_050", Size(32 + 16 * (number % 3), 32 + 16 * (number % 3)), Size(96, 96), "stock")
        macs = 10_000_000 * (number + 1)
        ledger.add_trial(done, number, candidate, Cost(macs=macs))
        image_bytes, latency_ms = 900.0 + 300 * (number % 3), 5.0 - number / 2
        cost = Cost(macs, 300_000, 2_000_000 - number, image_bytes, Size(32, 32), latency_ms, 9.0, 10**7)
        right = (60, 75, 70, 85, 80, 92)[number]
        deployment = Deployment(
            f"mdl_{number}", done, number, candidate, cost, "fp32", Accuracy(right, 100), sha, {"fit": "squash"}
        )
        ledger.add_deployment(deployment)
        ledger.move_trial(done, number, expect="costing", to="training")
        ledger.move_trial(done, number, expect="training", to="done", cost=cost, accuracy=right / 100)
    for number in (0, 1, 3, 5):
        ledger.set_test(f"mdl_{number}", Accuracy((60, 75, 0, 85, 0, 92)[number] * 2 - 3, 200), {})
    for state in (("queued", "running"), ("running", "done")):
        ledger.move_job(done, expect=(state[0],), to=state[1])
    ledger.move_job(running, expect=("queued",), to="running")
    return ledger, store, done, running


@pytest.fixture
def site(tmp_path: Path, live: Callable[[FastAPI], str]) -> Site:
    ledger, store, done, running = filled(tmp_path)
    app = create_app(ledger, store, Settings.load(home=tmp_path))
    return Site(live(app), done, running, ledger, app)
