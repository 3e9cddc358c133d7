"""A page as a person sees it, and the server that it comes from."""

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from stillhouse.service.db.memory import MemoryLedger

HOSTILE = "<img src=x onerror=alert(1)>"


class Page:
    """What a person sees."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def open(self, address: str) -> None:
        self.browser.get(address)

    def all(self, css: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def first(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def count(self, css: str) -> int:
        return len(self.all(css))

    def shown(self, css: str) -> list[str]:
        return [element.text for element in self.all(css)]

    def text(self, element_id: str) -> str:
        return self.browser.find_element(By.ID, element_id).text

    def write(self, field: str, text: str) -> None:
        """Replaces what a field of the form holds."""
        element = self.browser.find_element(By.ID, f"field-{field}")
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(text or Keys.DELETE)

    def wait(self, what: Callable[[], object]) -> None:
        WebDriverWait(self.browser, 15, 0.1, (StaleElementReferenceException,)).until(lambda _: what())

    def picture(self, name: str) -> None:
        """Keeps a screenshot of the whole page for a person to look at, where one asks for it."""
        if folder := os.environ.get("STILLHOUSE_SCREENSHOTS"):
            shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the browser's console had to say since the last time."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]

    def phone(self, width: int = 390) -> None:
        """Makes the window that of a phone; ``desk`` undoes it."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def desk(self) -> None:
        self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def dark(self, wanted: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@dataclass(frozen=True)
class Site:
    """A server: one job done with six models, one running with none."""

    base: str
    done: str
    running: str
    ledger: MemoryLedger
    app: FastAPI
