"""The pages in a real Chromium: what a person sees, clicks and downloads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import httpx
from fastapi import FastAPI
from seen import HOSTILE, Page, Site
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from stillhouse.search.domain import Accuracy, Candidate, Cost, Size
from stillhouse.service.app import create_app
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

BASELINE = {"variant": "plain_kd", "is_baseline": True}


def test_the_list_of_jobs(page: Page, site: Site) -> None:
    page.open(site.base)
    page.wait(lambda: page.count("#jobs tbody tr") == 2)
    rows = page.shown("#jobs tbody tr")
    assert site.running in rows[0], "the newest job comes first"
    assert "≤ 60 M MACs" in rows[1]
    assert "6 of 6" in rows[1]
    assert "92.0 %" in rows[1]
    assert HOSTILE in rows[1], "a hostile name is text, not HTML"
    page.picture("index")
    page.browser.find_element(By.LINK_TEXT, site.done).click()
    page.wait(lambda: page.browser.current_url.endswith(f"/ui/jobs/{site.done}"))
    assert page.complaints() == []


def test_the_front_is_drawn_and_its_axis_changes(page: Page, site: Site) -> None:
    page.open(f"{site.base}/ui/jobs/{site.done}")
    page.wait(lambda: page.count("#plot .scatterlayer .point") == 6)
    title = "#plot .xtitle"
    assert page.shown(title) == ["M MACs"]
    before = page.first("#plot .scatterlayer").get_attribute("innerHTML")
    Select(page.browser.find_element(By.ID, "axis")).select_by_value("image_bytes")
    page.wait(lambda: page.shown(title) == ["bytes per picture"])
    assert page.first("#plot .scatterlayer").get_attribute("innerHTML") != before
    assert page.shown("#state .done") == ["done"]
    assert len(page.shown("#trials tbody tr")) == 6
    assert page.complaints() == []
    page.picture("job")


def test_a_model_is_downloaded(page: Page, site: Site) -> None:
    page.open(f"{site.base}/ui/jobs/{site.done}")
    page.wait(lambda: page.count("#front tbody tr"))
    first = page.shown("#front tbody tr")[0]
    assert "90.5 %" in first, "the best comes first, at its test accuracy"
    link = page.first("#front tbody a")
    assert link.get_attribute("download").endswith(".onnx")
    assert httpx.get(link.get_attribute("href")).content == b"the bytes of a model"


def test_how_each_model_was_trained_is_shown(page: Page, site: Site) -> None:
    own = site.ledger.deployment("mdl_5")
    for name, right, told in (("own", 80, {"method": "tas"}), ("won", 90, {"method": "logits", **BASELINE})):
        site.ledger.add_deployment(
            dataclasses.replace(
                own, id=f"mdl_{name}", job_id=site.running, test=None, validation=Accuracy(right, 100), details=told
            )
        )
    site.ledger.set_test("mdl_own", Accuracy(150, 200), {"baselines": {"plain_kd": {"correct": 170, "total": 200}}})
    site.ledger.set_test("mdl_won", Accuracy(170, 200), {"baselines": {"distilled": {"correct": 150, "total": 200}}})
    page.open(f"{site.base}/ui/jobs/{site.running}")
    page.wait(lambda: page.shown("#front tbody tr"))
    (row,) = page.shown("#front tbody tr")
    assert "85.0 %" in row
    assert page.shown("#front tbody td:nth-child(4)")[0].splitlines() == [
        "plain KD",
        "distilled: 75.0 %",
        "plain KD beat distilled on validation, and is what is shipped",
    ]
    assert "same networks, trained otherwise" in page.shown("#plot .legendtext")
    assert page.count("#plot .scatterlayer .point") == 2
    page.picture("compared")
    assert page.complaints() == []


def test_a_running_job_fills_by_itself(page: Page, site: Site) -> None:
    page.open(f"{site.base}/ui/jobs/{site.running}")
    page.wait(lambda: page.shown("#state .running") == ["running"])
    page.wait(lambda: "points appear" in page.text("no-front"))
    site.ledger.add_trial(site.running, 0, Candidate("resnet10t", Size(32, 32), Size(64, 64)), Cost(macs=5_000_000))
    page.wait(lambda: any("resnet10t 32x32 → 64x64" in row for row in page.shown("#trials tbody tr")))
    assert "Left, about" in page.text("facts")
    page.picture("running")
    site.ledger.move_job(site.running, expect=("running",), to="failed", reason="the disk is full")
    page.wait(lambda: "the disk is full" in page.text("state"))
    page.wait(lambda: "ended without" in page.text("no-front"))
    assert page.complaints() == []


def test_the_page_fits_a_phone(page: Page, site: Site) -> None:
    page.phone()
    page.open(f"{site.base}/ui/jobs/{site.done}")
    page.wait(lambda: page.count("#plot .scatterlayer .point"))
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
    link = page.first("#front tbody a")
    assert link.rect["x"] + link.rect["width"] <= 390, "no table hides its downloads beyond the edge"
    assert "M MACs" in page.browser.execute_script(
        "return [...document.querySelectorAll('#front td')].map((td) => getComputedStyle(td, '::before').content) + ''"
    )
    page.picture("phone")


def test_an_empty_server_says_how_to_start(page: Page, tmp_path: Path, live: Callable[[FastAPI], str]) -> None:
    base = live(create_app(MemoryLedger(), DiskStore(tmp_path / "a"), Settings.load(home=tmp_path)))
    page.open(base)
    page.wait(lambda: "No job yet" in page.text("message"))
    assert f"{base}/datasets" in page.text("message")
    assert page.complaints() == []
    page.picture("empty")


def test_an_address_of_no_job_is_answered_by_a_page(page: Page, site: Site) -> None:
    assert httpx.get(f"{site.base}/ui/jobs/job_no").status_code == 404
    page.open(f"{site.base}/ui/jobs/job_no")
    assert page.shown("h1") == ["No such job"]
    page.complaints()  # the browser notes the 404; the next test begins without it
    page.browser.find_element(By.LINK_TEXT, "All jobs").click()
    page.wait(lambda: page.count("#jobs tbody tr") == 2)


def test_hovering_tells_the_candidate_and_a_click_downloads(page: Page, site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.open(f"{site.base}/ui/jobs/{site.done}")
    page.wait(lambda: page.count("#plot .scatterlayer .point") == 6)
    best = page.browser.find_elements(By.CSS_SELECTOR, "#plot .scatterlayer .trace:last-child .point")[-1]
    webdriver.ActionChains(page.browser).move_to_element(best).perform()
    page.wait(lambda: "lcnet_050" in "".join(page.shown("#plot .hoverlayer .hovertext")))
    hover = "".join(page.shown("#plot .hoverlayer .hovertext"))
    assert "64 → 96 px" in hover
    assert "90.5 %" in hover
    page.picture("hover")
    webdriver.ActionChains(page.browser).click().perform()
    page.wait(lambda: list(folder.glob("*.onnx")))
    (file,) = folder.glob("*.onnx")
    assert file.name.startswith("05-lcnet_050-64x64-96x96")
    assert file.read_bytes() == b"the bytes of a model"
