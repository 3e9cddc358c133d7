"""The page of a job whose front has picks, ties, doubts, families and a history."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from seen import Page, Site
from selenium.webdriver.common.alert import Alert
from selenium.webdriver.support.ui import Select

from stillhouse.service.app import create_app

Json = dict[str, Any]
SENT = {0: 0.55, 1: 0.80, 3: 0.70, 5: 0.82}
"""Accuracy as sent of the front's members: model 1 overtakes 3 and is 2 points below 5."""


def sent(entry: Json, share: float, quality: int = 90) -> Json:
    coded = {"accuracy_coded": share, "accuracy_coded_low": share - 0.03, "accuracy_coded_high": share + 0.02}
    return entry | coded | {"codec": "jpeg", "quality": quality, "judged": "coded"}


def rich(answer: Json) -> Json:
    """The answer of a job whose front is chosen by accuracy as sent, with everything that may be in it."""
    members = {entry["model"]: entry for entry in answer["front"]}
    front = [sent(members[f"mdl_{number}"], share) for number, share in SENT.items()]
    best = front[-1]
    half = sent(best, 0.815) | {"model": "mdl_half", "precision": "fp16", "model_bytes": 1_000_000, "file": "half.onnx"}
    half["links"] = {"onnx": "/models/mdl_3/onnx"}
    small = sent(best, 0.71, 60) | {"model": "mdl_q60", "image_bytes": 700.0, "links": {"onnx": "/models/mdl_4/onnx"}}
    others = [sent(entry, entry["accuracy"] - 0.02) for entry in answer["others"]]
    front[-1] = best | {"left_out": {"int8": "2.9 ms on local, where fp32 takes 2.5 ms"}}
    return answer | {
        "judged": "coded",
        "front": front,
        "family": [half, small],
        "others": others,
        "picks": {"knee": "mdl_1", "macs": "mdl_5", "image_bytes": "mdl_1"},
        "tied": {"mdl_5": "mdl_1"},
        "in_doubt": ["mdl_4"],
        "progress": [
            {"at": 60.0, "trials": 1, "hypervolume": 0.4},
            {"at": 300.0, "trials": 4, "hypervolume": 0.96},
            {"at": 420.0, "trials": 6, "hypervolume": 1.0},
        ],
    }


@pytest.fixture
def told(site: Site, live: Callable[[FastAPI], str]) -> Callable[..., str]:
    """Serves the site with an answer about its front that a function changes; gives the address of the job's page."""

    def serve(change: Callable[[Json], Json], job: str = site.done) -> str:
        real = TestClient(site.app, base_url="http://127.0.0.1")
        context = site.app.state.context
        app = create_app(context.ledger, context.store, context.settings)

        def front(job_id: str) -> Json:
            return change(real.get(f"/jobs/{site.done}/pareto").json()) | {"job": job_id}

        app.add_api_route("/jobs/{job_id}/pareto", front)
        app.router.routes.insert(0, app.router.routes.pop())
        return f"{live(app)}/ui/jobs/{job}"

    return serve


def rows(page: Page) -> list[str]:
    return shown(page, "#front > tbody > tr:not(.family)")


def shown(page: Page, css: str) -> list[str]:
    """What is shown, with plain hyphens in its intervals."""
    return [text.replace("\u2013", "-") for text in page.shown(css)]


def test_picks_and_ties_are_on_their_rows(page: Page, told: Callable[..., str]) -> None:
    page.open(told(rich))
    page.wait(lambda: rows(page))
    best, second, *_ = rows(page)
    assert "fewest MACs within 1 point" in best
    assert "not significantly better than the cheaper lcnet_050 48 → 96 stock" in best
    assert "best trade-off" in second
    assert "fewest bytes per picture within 1 point" in second
    assert page.count("#front .badge") == 3
    assert page.count("#front .tied") == 1
    assert page.complaints() == []
    page.picture("rich")


def test_the_accuracy_that_chooses_is_drawn_and_sorts(page: Page, told: Callable[..., str]) -> None:
    page.open(told(rich))
    page.wait(lambda: page.shown("#plot .ytitle") == ["test accuracy as sent, %"])
    assert [row.split("\n")[0].split()[0] for row in rows(page)] == ["lcnet_050"] * 4
    assert [" ".join(text.split()) for text in shown(page, "#front > tbody > tr:not(.family) > td:nth-child(8)")] == [
        "82.0 % (79.0-84.0)", "80.0 % (77.0-82.0)", "70.0 % (67.0-72.0)", "55.0 % (52.0-57.0)",
    ]  # fmt: skip
    assert page.first("#judged").is_displayed()
    drawn = page.browser.execute_script(
        "const { y, error_y: error } = document.getElementById('plot').data.at(-1);"
        "return [y, error.array, error.arrayminus]"
    )
    assert sorted(round(y, 3) for y in drawn[0]) == [55, 70, 80, 82]
    assert {round(y, 3) for y in drawn[1]} == {2}
    assert {round(y, 3) for y in drawn[2]} == {3}


def test_without_accuracy_as_sent_the_plain_one_is_drawn(page: Page, site: Site) -> None:
    page.open(f"{site.base}/ui/jobs/{site.done}")
    page.wait(lambda: page.shown("#plot .ytitle") == ["test accuracy, %"])
    assert not page.first("#judged").is_displayed()
    assert not page.first("#undrawn").is_displayed()


def test_what_an_answer_lacks_is_not_shown(page: Page, told: Callable[..., str]) -> None:
    def bare(answer: Json) -> Json:
        kept = {name: answer[name] for name in ("state", "objectives", "front", "others", "compared")}
        for entry in (*kept["front"], *kept["others"]):
            for name in ("trial", "precision", "judged", "accuracy_coded_low", "accuracy_coded_high", "left_out"):
                entry.pop(name, None)
        return kept

    page.open(told(bare))
    page.wait(lambda: page.count("#plot .scatterlayer .point") == 6)
    assert len(rows(page)) == 4
    assert not page.first("#doubt").is_displayed()
    assert not page.first("#growth").is_displayed()
    assert page.count("#front tr.family") == 0
    assert page.count("#front .badge") == 0
    assert page.complaints() == []


def test_doubt_and_family_are_traces_of_their_own(page: Page, told: Callable[..., str]) -> None:
    page.open(told(rich))
    page.wait(lambda: page.count("#plot .scatterlayer .point") == 8)
    points = page.browser.execute_script(
        "return Object.fromEntries(document.getElementById('plot').data.map((made) => [made.name, made.x.length]))"
    )
    assert points == {
        "other models (validation)": 1,
        "same networks, other precision or quality": 2,
        "in doubt: not ruled out beyond noise": 1,
        "front": 4,
    }
    assert page.first("#doubt").is_displayed()
    (item,) = page.shown("#doubt li")
    assert item.startswith("lcnet_050 48 → 96 stock, distilled: 78.0 %")
    link = page.first("#doubt a").get_attribute("href")
    assert httpx.get(link).content == b"the bytes of a model"


def test_a_front_row_opens_to_its_family(page: Page, told: Callable[..., str]) -> None:
    page.open(told(rich))
    page.wait(lambda: rows(page))
    assert page.count("#front tr.family") == 1, "the others have none"
    assert page.shown("#front summary") == ["family: 2 other deployments of lcnet_050"]
    assert not page.first("#front tr.family table").is_displayed()
    page.first("#front summary").click()
    half, small = shown(page, "#front tr.family tbody tr")
    assert half.split() == ["fp16", "JPEG", "90", "81.5", "%", "(78.5-83.5)", "1500", "2.50", "1000", "ONNX"]
    assert small.split() == ["fp32", "JPEG", "60", "71.0", "%", "(68.0-73.0)", "700", "2.50", "2000", "ONNX"]
    assert "int8 is left out: 2.9 ms on local" in page.text("front")
    links = page.all("#front tr.family a")
    assert links[0].get_attribute("download") == "half.onnx"
    assert httpx.get(links[1].get_attribute("href")).content == b"the bytes of a model"
    page.picture("family")


def test_a_family_stays_open_while_the_job_goes_on(page: Page, told: Callable[..., str], site: Site) -> None:
    asked: list[int] = []

    def moving(answer: Json) -> Json:
        asked.append(1)
        found = rich(answer) | {"state": "running"}
        found["front"][0]["latency_ms"] = float(len(asked))
        return found

    page.open(told(moving, site.running))
    page.wait(lambda: rows(page))
    page.first("#front summary").click()
    page.browser.execute_script("document.querySelector('#front tr.family a').focus()")
    seen = rows(page)[-1]
    page.wait(lambda: rows(page)[-1] != seen)
    assert page.first("#front tr.family table").is_displayed()
    assert page.browser.execute_script("return document.activeElement.download") == "half.onnx"


def test_how_the_front_grew(page: Page, told: Callable[..., str]) -> None:
    page.open(told(rich))
    page.wait(lambda: page.count("#growth-plot .scatterlayer .point") == 3)
    assert page.text("growth-told") == "95 % of it after 4 trials, 5 min; now 6 trials, 7 min"
    assert page.shown("#growth-plot .xtitle") == ["minutes since the job began"]
    assert page.complaints() == []


def test_one_point_is_no_history(page: Page, told: Callable[..., str]) -> None:
    page.open(told(lambda answer: rich(answer) | {"progress": rich(answer)["progress"][:1]}))
    page.wait(lambda: rows(page))
    assert not page.first("#growth").is_displayed()


def test_what_has_no_figure_is_counted(page: Page, told: Callable[..., str]) -> None:
    def without(answer: Json) -> Json:
        found = rich(answer)
        found["others"][0] |= {"accuracy_coded": None}
        found["family"][0] |= {"latency_ms": None}
        return found

    page.open(told(without))
    page.wait(lambda: page.text("undrawn").startswith("1 not drawn"))
    Select(page.first("#axis")).select_by_value("latency_ms")
    page.wait(lambda: page.text("undrawn").startswith("2 not drawn"))


def test_a_job_is_cancelled_after_a_question(page: Page, site: Site) -> None:
    page.open(f"{site.base}/ui/jobs/{site.running}")
    page.wait(lambda: page.first("#cancel").is_displayed())
    page.first("#cancel").click()
    Alert(page.browser).dismiss()
    assert site.ledger.job(site.running).state == "running"
    page.first("#cancel").click()
    Alert(page.browser).accept()
    page.wait(lambda: page.shown("#state .cancelled") == ["cancelled"])
    assert site.ledger.job(site.running).state == "cancelled"
    assert not page.first("#cancel").is_displayed()
    assert page.complaints() == []


def test_a_job_that_has_ended_meanwhile_says_why_it_cannot_be_cancelled(page: Page, site: Site) -> None:
    page.open(f"{site.base}/ui/jobs/{site.running}")
    page.wait(lambda: page.first("#cancel").is_displayed())
    page.first("#cancel").click()
    site.ledger.move_job(site.running, expect=("running",), to="done")
    Alert(page.browser).accept()
    page.wait(lambda: "this one is done" in page.text("failure"))
    page.wait(lambda: not page.first("#cancel").is_displayed())


def test_all_of_it_fits_a_phone(page: Page, told: Callable[..., str]) -> None:
    page.phone()
    page.open(told(rich))
    page.wait(lambda: page.count("#plot .scatterlayer .point") == 8)
    page.first("#front summary").click()
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
    page.picture("rich-phone")
    page.dark(True)
    page.browser.refresh()
    page.wait(lambda: page.count("#plot .scatterlayer .point") == 8)
    page.picture("rich-phone-dark")
