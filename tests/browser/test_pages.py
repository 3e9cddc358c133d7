"""The pages in a real Chromium: what a person sees, clicks and downloads."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from stillhouse.search.domain import Accuracy, Budget, Candidate, Cost, Deployment, Size
from stillhouse.search.job import JobSpec
from stillhouse.search.plan import ingest_plan
from stillhouse.service.app import create_app
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1400",
)  # fmt: skip
BASELINE = {"variant": "plain_kd", "is_baseline": True}
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
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
        ledger.move_trial(done, number, expect="costing", to="done", cost=cost, accuracy=right / 100)
    for number in (0, 1, 3, 5):
        ledger.set_test(f"mdl_{number}", Accuracy((60, 75, 0, 85, 0, 92)[number] * 2 - 3, 200), {})
    for state in (("queued", "running"), ("running", "done")):
        ledger.move_job(done, expect=(state[0],), to=state[1])
    ledger.move_job(running, expect=("queued",), to="running")
    return ledger, store, done, running


@pytest.fixture
def site(tmp_path: Path, live: Callable[[FastAPI], str]) -> tuple[str, str, str, MemoryLedger]:
    ledger, store, done, running = filled(tmp_path)
    return live(create_app(ledger, store, Settings.load(home=tmp_path))), done, running, ledger


def shown(browser: webdriver.Chrome, css: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, css)]


def wait(browser: webdriver.Chrome, what: Callable[[webdriver.Chrome], object]) -> None:
    WebDriverWait(browser, 15).until(what)


def picture(browser: webdriver.Chrome, name: str) -> None:
    """Keeps a screenshot for a person to look at, where one asks for it."""
    if folder := os.environ.get("STILLHOUSE_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{name}.png")


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_list_of_jobs(browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]) -> None:
    base, done, running, _ = site
    browser.get(base)
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#jobs tbody tr")) == 2)
    rows = shown(browser, "#jobs tbody tr")
    assert running in rows[0], "the newest job comes first"
    assert "≤ 60 M MACs" in rows[1]
    assert "6 of 6" in rows[1]
    assert "92.0 %" in rows[1]
    assert HOSTILE in rows[1], "a hostile name is text, not HTML"
    picture(browser, "index")
    browser.find_element(By.LINK_TEXT, done).click()
    wait(browser, lambda b: b.current_url.endswith(f"/ui/jobs/{done}"))
    assert complaints(browser) == []


def test_the_front_is_drawn_and_its_axis_changes(
    browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]
) -> None:
    base, done, _, _ = site
    browser.get(f"{base}/ui/jobs/{done}")
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .point")) == 6)
    title = "#plot .xtitle"
    assert shown(browser, title) == ["M MACs"]
    before = browser.find_element(By.CSS_SELECTOR, "#plot .scatterlayer").get_attribute("innerHTML")
    Select(browser.find_element(By.ID, "axis")).select_by_value("image_bytes")
    wait(browser, lambda b: shown(b, title) == ["bytes per picture"])
    assert browser.find_element(By.CSS_SELECTOR, "#plot .scatterlayer").get_attribute("innerHTML") != before
    assert shown(browser, "#state .done") == ["done"]
    assert len(shown(browser, "#trials tbody tr")) == 6
    assert complaints(browser) == []
    picture(browser, "job")


def test_a_model_is_downloaded(browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]) -> None:
    base, done, _, _ = site
    browser.get(f"{base}/ui/jobs/{done}")
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#front tbody tr"))
    first = shown(browser, "#front tbody tr")[0]
    assert "90.5 %" in first, "the best comes first, at its test accuracy"
    link = browser.find_element(By.CSS_SELECTOR, "#front tbody a")
    assert link.get_attribute("download").endswith(".onnx")
    assert httpx.get(link.get_attribute("href")).content == b"the bytes of a model"


def test_how_each_model_was_trained_is_shown(
    browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]
) -> None:
    base, _, running, ledger = site
    own = ledger.deployment("mdl_5")
    for name, right, told in (("own", 80, {"method": "tas"}), ("won", 90, {"method": "logits", **BASELINE})):
        ledger.add_deployment(
            dataclasses.replace(
                own, id=f"mdl_{name}", job_id=running, test=None, validation=Accuracy(right, 100), details=told
            )
        )
    ledger.set_test("mdl_own", Accuracy(150, 200), {"baselines": {"plain_kd": {"correct": 170, "total": 200}}})
    ledger.set_test("mdl_won", Accuracy(170, 200), {"baselines": {"distilled": {"correct": 150, "total": 200}}})
    browser.get(f"{base}/ui/jobs/{running}")
    wait(browser, lambda b: shown(b, "#front tbody tr"))
    (row,) = shown(browser, "#front tbody tr")
    assert "85.0 %" in row
    assert shown(browser, "#front tbody td:nth-child(4)")[0].splitlines() == [
        "plain KD",
        "distilled: 75.0 %",
        "plain KD beat distilled on validation, and is what is shipped",
    ]
    assert "same networks, trained otherwise" in shown(browser, "#plot .legendtext")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .point")) == 2
    picture(browser, "compared")
    assert complaints(browser) == []


def test_a_running_job_fills_by_itself(browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]) -> None:
    base, _, running, ledger = site
    browser.get(f"{base}/ui/jobs/{running}")
    wait(browser, lambda b: shown(b, "#state .running") == ["running"])
    wait(browser, lambda b: "points appear" in b.find_element(By.ID, "no-front").text)
    ledger.add_trial(running, 0, Candidate("resnet10t", Size(32, 32), Size(64, 64)), Cost(macs=5_000_000))
    wait(browser, lambda b: any("resnet10t 32x32 → 64x64" in row for row in shown(b, "#trials tbody tr")))
    assert "Left, about" in browser.find_element(By.ID, "facts").text
    picture(browser, "running")
    ledger.move_job(running, expect=("running",), to="failed", reason="the disk is full")
    wait(browser, lambda b: "the disk is full" in b.find_element(By.ID, "state").text)
    wait(browser, lambda b: "ended without" in b.find_element(By.ID, "no-front").text)
    assert complaints(browser) == []


def test_the_page_fits_a_phone(browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]) -> None:
    base, done, _, _ = site
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(f"{base}/ui/jobs/{done}")
        wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .point"))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        link = browser.find_element(By.CSS_SELECTOR, "#front tbody a")
        assert link.rect["x"] + link.rect["width"] <= 400, "no table hides its downloads beyond the edge"
        assert "M MACs" in browser.execute_script(
            "return [...document.querySelectorAll('#front td')].map((td) => getComputedStyle(td, '::before').content)"
            ".join()"
        )
        picture(browser, "phone")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_empty_server_says_how_to_start(
    browser: webdriver.Chrome, tmp_path: Path, live: Callable[[FastAPI], str]
) -> None:
    base = live(create_app(MemoryLedger(), DiskStore(tmp_path / "a"), Settings.load(home=tmp_path)))
    browser.get(base)
    wait(browser, lambda b: "No job yet" in b.find_element(By.ID, "message").text)
    assert f"{base}/datasets" in browser.find_element(By.ID, "message").text
    assert complaints(browser) == []
    picture(browser, "empty")


def test_an_address_of_no_job_is_answered_by_a_page(
    browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger]
) -> None:
    base, *_ = site
    assert httpx.get(f"{base}/ui/jobs/job_no").status_code == 404
    browser.get(f"{base}/ui/jobs/job_no")
    assert shown(browser, "h1") == ["No such job"]
    complaints(browser)  # the browser notes the 404; the next test begins without it
    browser.find_element(By.LINK_TEXT, "All jobs").click()
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#jobs tbody tr")) == 2)


def test_hovering_tells_the_candidate_and_a_click_downloads(
    browser: webdriver.Chrome, site: tuple[str, str, str, MemoryLedger], tmp_path: Path
) -> None:
    base, done, _, _ = site
    folder = tmp_path / "downloads"
    folder.mkdir()
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.get(f"{base}/ui/jobs/{done}")
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .point")) == 6)
    best = browser.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .trace:last-child .point")[-1]
    webdriver.ActionChains(browser).move_to_element(best).perform()
    wait(browser, lambda b: "lcnet_050" in "".join(shown(b, "#plot .hoverlayer .hovertext")))
    hover = "".join(shown(browser, "#plot .hoverlayer .hovertext"))
    assert "64 → 96 px" in hover
    assert "90.5 %" in hover
    picture(browser, "hover")
    webdriver.ActionChains(browser).click().perform()
    wait(browser, lambda _: list(folder.glob("*.onnx")))
    (file,) = folder.glob("*.onnx")
    assert file.name.startswith("05-lcnet_050-64x64-96x96")
    assert file.read_bytes() == b"the bytes of a model"
