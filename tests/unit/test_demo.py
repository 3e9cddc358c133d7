"""What the demo asks for, and how it says what the teacher was worth."""

import io
from typing import Any

import pytest
from rich.console import Console

from stillhouse.search.domain import Accuracy, Candidate, Cost, Deployment, Size
from stillhouse.search.job import JobRecord, JobSpec
from stillhouse.service.demo import demo_request, print_comparison
from stillhouse.service.run import Outcome

OWN: dict[str, Any] = {
    "method": "tas",
    "variant": "distilled",
    "baselines": {"no_teacher": {"correct": 120, "total": 200}, "plain_kd": {"correct": 150, "total": 200}},
}
WON: dict[str, Any] = {
    "method": "supervised",
    "variant": "no_teacher",
    "is_baseline": True,
    "baselines": {"distilled": {"correct": 120, "total": 200}, "plain_kd": {"correct": 150, "total": 200}},
}


def printed(*details: dict[str, Any]) -> str:
    candidate = Candidate("lcnet_050", Size(32, 32), Size(64, 64))
    front = tuple(
        Deployment(
            f"mdl_{number}", "j", number, candidate, Cost(), "fp32", Accuracy(9, 12), "0" * 64, {},
            Accuracy(160, 200), told,
        )
        for number, told in enumerate(details)
    )  # fmt: skip
    screen = io.StringIO()
    print_comparison(Outcome(JobRecord("j", JobSpec("d"), "done"), front, front, {}), Console(file=screen, width=100))
    return screen.getvalue()


@pytest.mark.parametrize("data", ["textures", "birds.zip"])
def test_the_demo_compares_its_best_model(data: str) -> None:
    assert demo_request(data).ablate == "best"


def test_all_figures_stand_side_by_side() -> None:
    text = printed(OWN, {"method": "tas"})
    assert text.count("What the teacher is worth") == 1, "only what was compared"
    rows = {row[0].strip(): row[2] for row in (line.split("│")[1:] for line in text.splitlines()) if len(row) > 2}
    assert set(rows) == {"distilled (tas): shipped", "no teacher", "plain KD"}
    assert "80.0%" in rows["distilled (tas): shipped"]
    assert ("60.0%" in rows["no teacher"], "75.0%" in rows["plain KD"]) == (True, True)
    assert " beat " not in text


def test_a_baseline_that_won_is_said() -> None:
    text = " ".join(printed(WON).split())
    assert "no teacher: shipped" in text
    assert "no teacher beat distilled on validation, and is what is shipped." in text
