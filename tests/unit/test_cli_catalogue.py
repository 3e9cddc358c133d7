"""``stillhouse catalogue check`` and ``add``, with the check itself and the counting made quick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.distill import catalogue
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Size
from stillhouse.service import cell_check, worker
from stillhouse.service.cell_check import STEPS, Verdict
from stillhouse.service.cli import app
from stillhouse.service.settings import Settings

NAME = "lcnet_150"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(32, 32),))
    return tmp_path / "home"


def verdicts(monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]) -> None:
    def check(_arch: str, _size: Size, stem: str) -> Verdict:
        if stem in failing:
            return Verdict(frozenset(STEPS[:2]), {"exports": f"no {stem}"}, {}, 1.0)
        return Verdict(frozenset(STEPS), {}, {}, 1.0)

    monkeypatch.setattr(cell_check, "check_cell", check)


def test_a_check_shows_a_line_a_cell(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    verdicts(monkeypatch, ("stride1",))
    done = CliRunner().invoke(app, ["catalogue", "check", NAME])
    assert done.exit_code == 0, done.output
    (stock,) = [line for line in done.output.splitlines() if "stock" in line]
    assert stock.count("yes") == 5 and "64x64" in stock
    assert "exports: no stride1" in done.output
    assert not home.exists()


def test_what_cannot_be_a_student_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts(monkeypatch, ("stock", "stride1"))
    for command in ("check", "add"):
        done = CliRunner().invoke(app, ["catalogue", command, NAME])
        assert done.exit_code == 1
        assert "none of its stems builds, trains and exports" in done.output
    assert CliRunner().invoke(app, ["catalogue", "check", "lcnet_53"]).exit_code == 2
    shipped = CliRunner().invoke(app, ["catalogue", "add", "lcnet_050"])
    assert shipped.exit_code == 2 and "nothing needs to be added" in shipped.output


def test_an_added_network_is_published(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    verdicts(monkeypatch, ("stride1",))
    kept = Settings.load().cache / "catalogue-0123.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    done = CliRunner().invoke(app, ["catalogue", "add", NAME])
    assert done.exit_code == 0, done.output
    assert not kept.exists(), "made anew at the next start"
    found = Catalogue.from_json(worker.catalogue(home))
    assert found.archs[NAME].stems == ("stock",)
    assert set(found.archs) - {NAME} == set(Catalogue.from_json(worker.catalogue()).archs)
    assert list(json.loads((home / "catalogue.json").read_text())) == [NAME]
