"""``stillhouse catalogue check`` and ``add``, with the check itself and the counting made quick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stillhouse.distill import catalogue
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Size
from stillhouse.service import cell_check, worker
from stillhouse.service.cell_check import STEPS, Verdict
from stillhouse.service.cli import app
from stillhouse.service.cli_catalogue import show
from stillhouse.service.settings import Settings

NAME = "lcnet_150"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(32, 32), Size(36, 64)))
    monkeypatch.setattr("stillhouse.service.cli_catalogue.os.cpu_count", lambda: 1)  # a check in this process
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
    stock = [line for line in done.output.splitlines() if "stock" in line]
    assert [line.replace("│", "").split()[1:] for line in stock] == [
        [size, *5 * ["yes"], "1"] for size in ("32x32", "36x64")
    ]
    assert "exports: no stride1" in done.output
    assert not home.exists()


def test_reasons_are_printed_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    verdicts(monkeypatch, ("stride1",))
    done = CliRunner().invoke(app, ["catalogue", "check", NAME])
    assert "stride1 32x32: exports: no stride1" in done.output.splitlines()
    assert "reason" not in done.output


def test_the_list_says_what_failed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {"macs_per_class": 1, "params_per_class": 1}
    cells = {"32x32|stock": {"macs": 1, "params": 1}, "224x224|stock": {"macs": 9, "params": 1}}
    entry = {"family": "cnn", "stems": ["stock"], **costs, "cells": cells}
    why = {"stock": {"fp16": "logits are not finite", "int8": "too far from " + "what fp32 says " * 20}}
    show(
        {
            "names": [],
            "image_sizes": [],
            "archs": {"good_net": entry, "half_net": entry | {"lacks": why}},
            "excluded": {"bad_net": {"stock": "builds: no convolution"}},
            "weights": {"package": ["good_net"]},
        },
        Console(width=100),
    )
    lines = capsys.readouterr().out.splitlines()
    (good,) = [line.split() for line in lines if line.split()[:1] == ["good_net"]]
    (half,) = [line.split() for line in lines if line.split()[:2] == ["half_net", "cnn"]]
    assert good == ["good_net", "cnn", "stock", "32-224", "all", "trained"]
    assert half[-2:] == ["fp32", "random"]
    assert "  bad_net stem stock: builds: no convolution" in lines
    assert "  half_net stem stock: fp16: logits are not finite" in lines
    assert any(line.startswith("  half_net stem stock: int8: too far") for line in lines)


def test_the_command_lists_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    published = worker.catalogue()
    monkeypatch.setattr("stillhouse.service.wiring.worker_catalogue", lambda _: published)
    done = CliRunner().invoke(app, ["catalogue", "list"])
    assert done.exit_code == 0, done.output
    listed = {line.split()[0] for line in done.output.splitlines() if line.strip()}
    assert set(published["archs"]) <= listed
    assert "excluded:" in done.output


def test_what_an_added_network_lacks_is_published(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def check(_arch: str, _size: Size, stem: str) -> Verdict:
        if stem == "stride1":
            return Verdict(frozenset(STEPS[:2]), {"exports": "no stride1"}, {}, 1.0)
        return Verdict(frozenset(STEPS) - {"fp16"}, {"fp16": "logits are not finite"}, {}, 1.0)

    monkeypatch.setattr(cell_check, "check_cell", check)
    assert CliRunner().invoke(app, ["catalogue", "add", NAME]).exit_code == 0
    found = worker.catalogue(home)
    assert found["archs"][NAME]["lacks"] == {"stock": {"fp16": "logits are not finite"}}
    assert found["excluded"][NAME] == {"stride1": "exports: no stride1"}


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
