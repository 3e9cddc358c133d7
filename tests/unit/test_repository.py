"""The repository's own files: they parse, refer to things that exist, and keep the project's rules."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from speed import slowness
from stillhouse import __version__
from stillhouse.service.cli import app

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_every_make_target_is_described() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    described = set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))
    assert {"demo", "test", "lint", "install"} <= targets
    assert targets == described
    make = shutil.which("make")
    assert make is not None
    shown = subprocess.run([make, "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in shown for target in targets)


def test_the_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_import_rules_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert CliRunner().invoke(app, ["version"]).stdout.strip() == __version__


def test_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = {path.name for path in folder.glob("0*.md")}
    assert set(re.findall(r"\((0\d+[\w-]+\.md)\)", (folder / "README.md").read_text())) == pages


def test_links_between_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# A checkout must install and run anywhere: from the registries that pip, apt and npm are set up for, in any folder.
FORBIDDEN = {
    "a registry's host": re.compile(r"(pypi|pythonhosted|npmjs|debian|crates|docker|ghcr|quay)\.(org|com|io)\b"),
    "a path of one machine": re.compile(r"(?<![\w.}~-])/(root|work|tmp|mnt|Users|home/\w+)/"),
}


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: it cannot be told which files are the repository's")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    assert len(paths) > len(SOURCES)
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [
            f"{path.relative_to(ROOT)}: {what} ({m[0]})"
            for what, rule in FORBIDDEN.items()
            for m in rule.finditer(text)
        ]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    allowed = {"run": 125}  # the command line's options, one a line
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = allowed.get(node.name, 60) if path.name == "cli_run.py" else 60
            assert length <= limit, f"{node.name} has {length} lines"


def test_the_api_starts_without_torch() -> None:
    code = (
        "import sys, time; t = time.process_time(); import stillhouse.service.app;"
        "bad = {'torch', 'timm', 'optuna', 'onnxruntime'} & set(sys.modules);"
        "print(time.process_time() - t); sys.exit(str(bad) if bad else 0)"
    )
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False) for _ in "12"]
    assert all(run.returncode == 0 for run in done), done[0].stderr
    seconds = min(float(run.stdout) for run in done) / slowness()
    assert seconds < 2.5, f"the API's modules took {seconds:.2f} s of CPU to import"
