"""What the command line makes of errors, budgets and flags, without running a job."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stillhouse.search.domain import Budget, Size
from stillhouse.search.errors import BudgetError, DatasetError, StageError, UserError
from stillhouse.search.job import JobRecord, JobSpec
from stillhouse.service import cli, cli_messages, cli_run
from stillhouse.service.cli_options import LIMITS, budget_of, values_of
from stillhouse.service.run import Outcome
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("error", "code", "label"),
    [
        (UserError("do [this]"), 2, "error:"),
        (StageError("do [this]"), 1, "failed:"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_one_message_and_an_exit_code(
    error: BaseException, code: int, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, cli_messages.messages():
        raise error
    assert caught.value.exit_code == code
    shown = capsys.readouterr().err
    assert label in shown
    assert code == 130 or "do [this]" in shown, "brackets of a message are no markup"


def test_all_faults_are_told_on_the_screen_or_in_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), cli_messages.messages():
        raise DatasetError("three faults", [f"a/{n}.jpg: torn" for n in range(3)])
    assert capsys.readouterr().err.count(": torn") == 3
    assert not home.exists()
    with pytest.raises(typer.Exit), cli_messages.messages():
        raise DatasetError("many faults", [f"a/{n}.jpg: torn" for n in range(300)])
    shown = capsys.readouterr().err
    assert shown.count(": torn") == cli_messages.SHOWN_FAULTS
    (path,) = (home / "logs").glob("faults-*.txt")
    assert f"280 more; all are in {path}" in shown
    assert len(path.read_text().splitlines()) == 300


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("stillhouse.service.cli", {"numpy", "optuna", "pydantic", "sqlalchemy", "fastapi", "alembic", "torch"}),
        ("stillhouse.service.cli_estimate", {"optuna", "fastapi", "alembic", "httpx", "matplotlib", "torch"}),
    ],
)
def test_a_command_loads_what_it_needs(module: str, spared: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not spared & set(loaded)


def test_an_estimate_of_nothing_that_is_there_says_what_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"tas": {"teacher": True, "assistant": True, "knobs": []}}
    names = {"names": [JobSpec.teacher], "image_sizes": [], "archs": {}}
    known = {**names, "methods": methods, "weights": {"hub": []}}
    monkeypatch.setattr("stillhouse.service.wiring.worker_catalogue", lambda _: known)
    done = CliRunner().invoke(cli.app, ["estimate", "ds_nothere"])
    assert done.exit_code == 2
    assert "no file, no folder and no id of a data set: 'ds_nothere'" in done.output


def test_every_command_is_found_and_named_in_the_help() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for name in (*cli.MODULES, "version"):
        assert f" {name} " in shown
        assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["nosuch"]).exit_code == 2


def test_a_budget_file_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text("max_macs: 60e6\nmax_image_size: 48x64\n")
    none = dict.fromkeys(LIMITS)
    assert budget_of(none, path) == Budget(max_macs=60_000_000, max_image_size=Size(48, 64))
    assert budget_of({**none, "max_macs": 5e6}, path).max_macs == 5_000_000, "options win over the file"
    assert budget_of(none, None) == Budget()
    for text, message in (("- 1\n", "must hold limits by name"), ("a: [", "cannot be read as YAML")):
        path.write_text(text)
        with pytest.raises(BudgetError, match=message):
            budget_of(none, path)
    with pytest.raises(BudgetError, match="cannot be read as YAML"):
        budget_of(none, tmp_path / "none.yaml")


def test_knobs_are_name_and_value() -> None:
    nested = values_of("set", "trials=4", ["epochs.student=6", "epochs.teacher=2", "trials=3"])
    assert nested == {"epochs": {"student": 6, "teacher": 2}, "trials": 3}
    with pytest.raises(UserError, match=r"'trials\.a=1'"):
        values_of("set", "trials=4", ["trials=3", "trials.a=1"])
    assert values_of("knob", "gamma=10", ["gamma=10", "beta=0.5", "flag=true", "word=x"]) == {
        "gamma": 10,
        "beta": 0.5,
        "flag": True,
        "word": "x",
    }
    for text in ("gamma", "gamma=["):
        with pytest.raises(UserError, match="--knob is written NAME=VALUE, such as gamma=10"):
            values_of("knob", "gamma=10", [text])


@pytest.mark.parametrize("reason", [None, "1 of the comparisons could not be made: torn"])
def test_a_finished_run_says_which_comparisons_it_lacks(
    reason: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = JobRecord("j", JobSpec("d"), "done", reason=reason)
    monkeypatch.setattr(cli_run, "run_job", lambda *_, **__: Outcome(job, (), (), {}))
    platform = Platform(Settings.load())
    cli_run._run(platform, "textures", job.spec, tmp_path / "out", skip_faults=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert ("; the same command tries again" in shown) is (reason is not None)
    assert reason is None or reason in shown
