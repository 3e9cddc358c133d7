"""The form that starts a job: what it shows, what it counts while one writes, and what it sends."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from seen import Page
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from served import CATALOGUE, SUMMARY
from stillhouse.search.devices import DeviceRecord
from stillhouse.search.job import JobSpec
from stillhouse.search.plan import ingest_plan
from stillhouse.service.app import create_app
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.described import CHOICES, ITEMS
from stillhouse.service.schemas import JobRequest, Limits, Search
from stillhouse.service.settings import Settings
from stillhouse.service.store import DiskStore

OTHER_WORDS = {"max_flops", "max_kbit_per_s", "frames_per_s"}
KNOBS = [{"name": "beta", "type": "number", "default": 5.0, "low": 0.0, "high": 9.0, "help": "weight of the hint"}]
METHODS = CATALOGUE["methods"] | {"hints": {"teacher": True, "assistant": False, "knobs": KNOBS}}


@dataclass(frozen=True)
class Works:
    """A server that can be asked for jobs: its address, its ledger and a data set."""

    base: str
    ledger: MemoryLedger
    dataset: str

    def end(self, dataset: str, state: str = "ready", reason: str | None = None) -> None:
        self.ledger.end_dataset(dataset, state, summary=SUMMARY if state == "ready" else {}, reason=reason, faults=())


def birds(works: Works) -> str:
    dataset = works.ledger.add_dataset("birds", ingest_plan("birds", "birds", False, {})).id
    works.end(dataset)
    return dataset


@pytest.fixture
def works(tmp_path: Path, live: Callable[[FastAPI], str]) -> Works:
    ledger = MemoryLedger()
    ledger.publish_catalogue(CATALOGUE | {"methods": METHODS})
    base = live(create_app(ledger, DiskStore(tmp_path / "a"), Settings.load(home=tmp_path)))
    return Works(base, ledger, "")


@pytest.fixture
def ready(works: Works, page: Page) -> Works:
    """The form, open, with one data set to choose."""
    dataset = birds(works)
    page.open(f"{works.base}/ui/new")
    page.wait(lambda: "candidates fit" in page.text("count"))
    return Works(works.base, works.ledger, dataset)


def invalid(page: Page) -> list[str | None]:
    return [element.get_attribute("id") for element in page.all("[aria-invalid]")]


def test_the_form_creates_a_job(page: Page, ready: Works) -> None:
    page.write("max_macs", "2.5")
    page.write("max_image_size", "48x64")
    page.write("min_accuracy", "29")
    page.write("trials", "3")
    page.write("epochs.student", "7")
    Select(page.first("#field-method")).select_by_visible_text("supervised")
    page.first("#field-objectives input[value=latency_ms]").click()
    page.first("details.panel summary").click()
    Select(page.first("#field-sampler")).select_by_visible_text("tpe")
    page.write("image_sizes", "32x32, 64x64")
    page.first("#field-compile").click()
    page.picture("new-filled")
    page.first("#submit").click()
    page.wait(lambda: "/ui/jobs/" in page.browser.current_url)
    (job,) = ready.ledger.jobs()
    assert page.browser.current_url.endswith(f"/ui/jobs/{job.id}")
    assert (
        job.spec
        == JobRequest(
            dataset=ready.dataset,
            budget={"max_macs": 2_500_000, "max_image_size": "48x64", "min_accuracy": 0.29},
            search={
                "trials": 3,
                "epochs": {"student": 7},
                "method": "supervised",
                "objectives": ["macs", "image_bytes", "latency_ms"],
                "sampler": "tpe",
                "image_sizes": ["32x32", "64x64"],
                "compile": True,
            },
        ).to_spec()
    )
    assert page.complaints() == []


def test_a_device_that_announced_itself_can_be_chosen(page: Page, ready: Works) -> None:
    assert [option.text for option in Select(page.first("#field-device")).options] == ["local"]
    ready.ledger.see_device(DeviceRecord("gate-cam", "onnxruntime 1.22.0", "d1", {"cpu": "Cortex-A53"}))
    page.open(f"{ready.base}/ui/new")
    page.wait(lambda: "candidates fit" in page.text("count"))
    Select(page.first("#field-device")).select_by_visible_text("gate-cam")
    page.write("max_latency_ms", "20")
    page.wait(lambda: "fit" in page.text("count"))
    page.first("#submit").click()
    page.wait(lambda: "/ui/jobs/" in page.browser.current_url)
    (job,) = ready.ledger.jobs()
    assert (job.spec.budget.device, job.spec.budget.max_latency_ms) == ("gate-cam", 20.0)
    page.wait(lambda: "on gate-cam" in page.browser.page_source.replace("\u00a0", " ").replace("&nbsp;", " "))


def test_the_count_follows_the_limits(page: Page, ready: Works) -> None:
    count = page.text("count")
    assert page.shown("#likely-best")[0].startswith("Likely best: lcnet_050")
    page.write("max_macs", "2")
    page.wait(lambda: page.text("count") != count)
    assert page.text("count") == "1 of 3 candidates fit."
    assert page.text("binds") == "max_macs binds: it alone rules out 2."
    assert page.shown("#estimate thead th")[3:] == ["+10 %", "+25 %", "+50 %"]
    assert page.shown("#estimate tbody td")[3:] == ["+0", "+0", "+0"]
    page.write("max_macs", "3")
    page.wait(lambda: page.shown("#estimate tbody td")[3:] == ["+0", "+0", "+2"])
    page.write("max_latency_ms", "20")
    page.wait(lambda: page.text("count") == "At most 1 of 3 candidates fit.")
    page.write("max_macs", "0.5")
    page.wait(lambda: page.text("count") == "0 of 3 candidates fit.")
    assert "The nearest is lcnet_050" in page.text("estimate-rest")
    assert page.complaints() == []
    assert ready.ledger.jobs() == []


@pytest.mark.usefixtures("ready")
def test_only_the_last_of_quick_changes_is_asked_and_an_earlier_question_is_dropped(page: Page) -> None:
    page.browser.execute_script(
        "window.asked = []; const real = window.fetch;"
        "window.fetch = (url, more) => { if (url !== '/estimates') return real(url, more);"
        "asked.push(more); return asked.length > 1 ? real(url, more) : new Promise((_, fail) =>"  # the first hangs
        "more.signal.addEventListener('abort', () => fail(more.signal.reason))); };"
    )
    page.browser.execute_async_script(
        "const done = arguments[0]; const field = document.getElementById('field-max_macs');"
        "['1', '1.', '1.5', '1.52', '1.5'].forEach((text, i) => setTimeout(() => {"
        "field.value = text; field.dispatchEvent(new Event('input', { bubbles: true })); }, 50 * i));"
        "setTimeout(done, 1000);"
    )
    asked = "return asked.map((more) => [JSON.parse(more.body).budget.max_macs, more.signal.aborted])"
    assert page.browser.execute_script(asked) == [[1_500_000, False]]
    page.write("max_macs", "2.25")
    page.wait(lambda: page.text("count") == "1 of 3 candidates fit.")
    assert page.browser.execute_script(asked) == [[1_500_000, True], [2_250_000, False]]


def test_a_bad_value_shows_the_servers_words(page: Page, ready: Works) -> None:
    page.write("max_macs", "many")
    page.wait(lambda: "max_macs must be a number, but got 'many'" in page.text("count"))
    assert invalid(page) == ["field-max_macs"]
    assert "but got 'many'" in page.first(".field:has([aria-invalid])").text, "the message stands at its field too"
    page.write("max_macs", "")
    page.wait(lambda: "candidates fit" in page.text("count"))
    assert invalid(page) == []
    page.first("details.panel summary").click()
    page.write("eta", "99")
    page.first("details.panel summary").click()
    page.wait(lambda: "1 <= eta <= 16 must hold" in page.text("count"))
    page.first("#submit").click()
    page.wait(lambda: "1 <= eta <= 16 must hold, but got 99" in page.text("failure"))
    assert page.first("#submit").is_enabled()
    assert page.browser.switch_to.active_element.get_attribute("id") == "field-eta", (
        "the field is open and has the focus"
    )
    page.picture("new-refused")
    page.write("eta", "3")
    page.first("#submit").click()
    page.wait(lambda: "/ui/jobs/" in page.browser.current_url)
    (job,) = ready.ledger.jobs()
    assert job.spec.eta == 3


def test_the_same_filling_is_one_job_and_another_is_another(page: Page, ready: Works) -> None:
    page.browser.execute_script(
        "window.keys = []; const real = window.fetch; window.fetch = async (url, more) => {"
        "if (url !== '/jobs') return real(url, more);"
        "keys.push(more.headers['Idempotency-Key']); const answer = await real(url, more);"
        "if (keys.length < 3) throw new Error('the line broke'); return answer; };"
    )
    for _ in range(2):
        page.first("#submit").click()
        page.wait(lambda: page.text("failure") == "the line broke" and page.first("#submit").is_enabled())
    first, again = page.browser.execute_script("return keys")
    assert first == again
    assert len(ready.ledger.jobs()) == 1, "what was sent twice is one job"
    page.write("trials", "5")
    page.first("#submit").click()
    page.wait(lambda: "/ui/jobs/" in page.browser.current_url)
    assert len(ready.ledger.jobs()) == 2


@pytest.mark.usefixtures("ready")
def test_every_field_of_the_search_is_there(page: Page) -> None:
    ids = {element.get_attribute("id") for element in page.all("[id^=field-]")}
    assert {f"field-{name}" for name in Search.model_fields} <= ids
    assert {f"field-{name}" for name in set(Limits.model_fields) - OTHER_WORDS} <= ids
    unlabelled = page.browser.execute_script(
        "return [...document.querySelectorAll('#new-job input, #new-job select')]"
        ".filter((control) => control.labels.length === 0 || !control.labels[0].textContent.trim())"
        ".map((control) => control.id)"
    )
    assert unlabelled == []
    options = Select(page.first("#field-method")).options
    assert [option.text for option in options] == sorted(METHODS)


@pytest.mark.parametrize("name", sorted({*CHOICES, *ITEMS}))
def test_what_may_be_chosen_is_taken(name: str) -> None:
    schema = Search.model_json_schema()["properties"][name]
    for value in CHOICES.get(name, ()):
        assert value in schema["enum"]
        JobSpec("ds", **{name: value})
    for value in ITEMS.get(name, ()):
        assert value in schema["items"]["enum"]
        JobSpec("ds", **{name: ["fp32", value] if name == "precisions" else [value]})


def test_the_knobs_are_those_of_the_method(page: Page, ready: Works) -> None:
    assert not page.first("#field-knobs").is_displayed()
    Select(page.first("#field-method")).select_by_visible_text("hints")
    page.first("details.panel summary").click()
    assert page.first("[id='field-knobs.beta']").get_attribute("value") == "5"
    page.write("knobs.beta", "100")
    page.wait(lambda: "knob beta of method hints" in page.text("count"))
    page.write("knobs.beta", "0.5")
    page.wait(lambda: "candidates fit" in page.text("count"))
    page.first("#submit").click()
    page.wait(lambda: "/ui/jobs/" in page.browser.current_url)
    (job,) = ready.ledger.jobs()
    assert dict(job.spec.knobs) == {"beta": 0.5}


def test_a_job_like_another_is_the_same(page: Page, ready: Works) -> None:
    request = JobRequest(
        dataset=ready.dataset,
        budget={"max_macs": 70_500_001, "max_image_size": 64, "min_accuracy": 0.29, "max_memory_bytes": 123_456_789},
        search={"trials": 2, "method": "hints", "knobs": {"beta": 2}, "ladder": [96, 64], "teacher_size": 128,
                "epochs": {"teacher": 2, "assistant": 3, "student": 4}, "max_wall_s": 90.5, "ablate": "best"},
    )  # fmt: skip
    # The ladder needs a method with an assistant; the form must carry it all the same.
    first = ready.ledger.add_job(request.to_spec())
    page.open(f"{ready.base}/ui/jobs/{first.id}")
    page.browser.find_element(By.LINK_TEXT, "New job like this").click()
    page.wait(lambda: first.id in page.text("like"))
    page.wait(lambda: "ladder" in page.text("count"))
    page.write("ladder", "")
    page.wait(lambda: "candidates fit" in page.text("count"))
    page.first("#submit").click()
    page.wait(lambda: page.browser.current_url.split("/")[-2:-1] == ["jobs"])
    page.wait(lambda: len(ready.ledger.jobs()) == 2)
    second = next(job for job in ready.ledger.jobs() if job.id != first.id)
    assert second.spec.to_json() == first.spec.to_json() | {"ladder": []}
    page.complaints()  # the browser notes the 422 of the ladder


def test_pictures_come_first(page: Page, works: Works) -> None:
    page.open(works.base)
    page.wait(lambda: "No job yet" in page.text("message"))
    page.browser.find_element(By.LINK_TEXT, "Start one here").click()
    page.wait(lambda: "once a data set is chosen" in page.text("count"))
    assert f"{works.base}/datasets" in page.first("#more-datasets pre").text
    page.picture("new-empty")
    page.first("[data-builtin=textures]").click()
    page.wait(lambda: "textures" in page.text("dataset-state"))
    (dataset,) = works.ledger.datasets()
    option = page.first(f"#dataset option[value={dataset.id}]")
    assert not option.is_enabled(), "what is being read cannot be chosen"
    works.end(dataset.id)
    page.wait(lambda: "candidates fit" in page.text("count"))
    assert page.first("#dataset").get_attribute("value") == dataset.id
    assert page.text("dataset-state") == ""
    assert page.complaints() == []


def test_pictures_that_cannot_be_read_are_told(page: Page, works: Works) -> None:
    page.open(f"{works.base}/ui/new")
    page.wait(lambda: page.first("[data-builtin=textures]").is_displayed())
    page.first("[data-builtin=textures]").click()
    page.wait(works.ledger.datasets)
    works.end(works.ledger.datasets()[0].id, "failed", "three pictures are broken")
    page.wait(lambda: "three pictures are broken" in page.text("dataset-error"))
    assert not page.first("#dataset option:nth-child(2)").is_enabled()


def test_a_zip_is_uploaded(page: Page, works: Works, tmp_path: Path) -> None:
    page.open(f"{works.base}/ui/new")
    page.wait(lambda: page.first("#upload").is_displayed())
    page.first("#upload").click()
    page.wait(lambda: "Choose a zip file first" in page.text("dataset-error"))
    path = tmp_path / "no.zip"
    path.write_bytes(b"not a zip")
    page.first("#zip").send_keys(str(path))
    page.first("#upload").click()
    page.wait(lambda: "not a zip" in page.text("dataset-error"))
    (tmp_path / "yes.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    page.first("#zip").send_keys(str(tmp_path / "yes.zip"))
    page.first("#upload").click()
    page.wait(lambda: [each.name for each in works.ledger.datasets()] == ["yes.zip"])


def test_the_form_fits_a_phone(page: Page, ready: Works) -> None:
    page.phone()
    page.open(f"{ready.base}/ui/new")
    page.wait(lambda: "candidates fit" in page.text("count"))
    page.write("max_macs", "2")
    page.write("max_latency_ms", "20")
    page.wait(lambda: page.count("#estimate tbody tr") == 2)
    page.first("details.panel summary").click()
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
    page.picture("new-phone")
    page.dark(True)
    page.picture("new-phone-dark")
