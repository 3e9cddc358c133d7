"""The repository's own files: they parse, refer to things that exist, and keep the project's rules."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from compose_spec import PyCompose
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from typer.testing import CliRunner

from stillhouse import __version__
from stillhouse.service.cli import app
from stillhouse.service.db.connect import database_url
from stillhouse.service.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


class Strict(BaseModel):
    """A mapping of the compose specification that takes the keys named here and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


Duration = Annotated[str, StringConstraints(pattern=r"^(\d+(us|ms|s|m|h))+$")]


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    test: Annotated[list[str], Field(min_length=2)]
    interval: Duration
    timeout: Duration
    retries: Annotated[int, Field(ge=1)]


class Service(Strict):
    image: str
    build: str | None = None
    command: list[str] | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    init: bool = False
    stop_grace_period: Duration | None = None
    cap_drop: list[str] = []
    security_opt: list[str] = []
    environment: dict[str, str]
    ports: list[Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:\d+:\d+$")]] = []
    volumes: list[Annotated[str, StringConstraints(pattern=r"^[a-z]+:/[\w/]+$")]]
    depends_on: dict[str, Dependency] = {}
    healthcheck: Healthcheck | None = None


class Compose(Strict):
    """The part of the compose specification that our file uses; any other key is refused, so a typo is found."""

    name: str
    services: dict[str, Service]
    volumes: dict[str, None]


@pytest.fixture(scope="module")
def compose() -> Compose:
    data = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return Compose.model_validate({key: value for key, value in data.items() if not key.startswith("x-")})


def test_compose_names_only_what_it_defines(compose: Compose) -> None:
    assert set(compose.services) == {"db", "api", "controller"}
    used = set()
    for service in compose.services.values():
        for other, dependency in service.depends_on.items():
            assert dependency.condition != "service_healthy" or compose.services[other].healthcheck is not None
        used |= {volume.partition(":")[0] for volume in service.volumes}
    assert used == set(compose.volumes)
    api, controller = compose.services["api"], compose.services["controller"]
    assert api.volumes == controller.volumes, "they share the home folder"
    assert api.environment == controller.environment, "they share the settings"


def test_compose_sets_settings_that_exist(compose: Compose) -> None:
    known = {f"STILLHOUSE_{name.upper()}": name for name in Settings.model_fields}
    for name in ("api", "controller"):
        environment = compose.services[name].environment
        ours = {variable: value for variable, value in environment.items() if variable.startswith("STILLHOUSE_")}
        settings = Settings.load(**{known[variable]: value for variable, value in ours.items()})
        url = database_url(settings.database_url)
        assert (url.host, url.username) == ("db", compose.services["db"].environment["POSTGRES_USER"])
        assert url.database == compose.services["db"].environment["POSTGRES_DB"]
        assert compose.services[name].volumes[0].partition(":")[2] == str(settings.home)


def test_compose_asks_for_the_password_and_publishes_the_port_that_is_served(compose: Compose) -> None:
    for name, service in compose.services.items():
        variable = "POSTGRES_PASSWORD" if name == "db" else "PGPASSWORD"
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", service.environment[variable]), "no default"
    api = compose.services["api"]
    port = Settings.model_fields["port"].default
    assert api.ports == [f"127.0.0.1:{port}:{port}"]
    assert api.healthcheck is not None
    assert f"http://127.0.0.1:{port}/health" in " ".join(api.healthcheck.test)


def test_compose_and_image_call_commands_that_exist(compose: Compose) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    called = {service.command[0] for service in compose.services.values() if service.command}
    dockerfile = (ROOT / "Dockerfile").read_text()
    called |= set(re.findall(r'CMD \["(\w+)"\]', dockerfile))
    assert called
    assert called <= known
    assert re.search(r"^USER stillhouse$", dockerfile, re.MULTILINE), "the container does not run as root"


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
            limit = allowed.get(node.name, 60) if path.name == "cli.py" else 60
            assert length <= limit, f"{node.name} has {length} lines"


def test_a_parser_of_compose_files_accepts_ours_and_refuses_a_fault() -> None:
    data = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    PyCompose.from_yaml(yaml.safe_dump(data)).validate()
    data["services"]["api"]["restarts"] = "always"
    with pytest.raises(Exception, match="restarts"):
        PyCompose.from_yaml(yaml.safe_dump(data)).validate()
