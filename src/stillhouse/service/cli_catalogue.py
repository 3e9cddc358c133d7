"""``stillhouse catalogue``: does a network of timm work as a student here, and may the search choose it?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Json
from stillhouse.search.errors import StageError, UserError
from stillhouse.service.own_networks import add_own_network
from stillhouse.service.settings import Settings

Name = Annotated[str, typer.Argument(help="A network's name in timm, such as mobilenetv3_rw.")]


def commands(messages: Callable[[], AbstractContextManager[None]]) -> typer.Typer:
    """The sub-commands; ``messages`` turns errors into a message and an exit code."""
    app = typer.Typer(help="Networks that can be students.", no_args_is_help=True)

    @app.command()
    def check(name: Name) -> None:
        """Build, train, export and lower in precision a network in each of its stems, and say what works."""
        with messages():
            _checked(name)

    @app.command()
    def add(name: Name) -> None:
        """Check a network and count its costs; from the next start on, the search may choose it."""
        from stillhouse.distill.catalogue import describe  # noqa: PLC0415 - torch is for this command alone

        with messages():
            if name in Catalogue.load().archs:
                raise UserError(f"{name} is in the catalogue that ships with Stillhouse; nothing needs to be added")
            failed = _checked(name)
            with Console().status(f"counting the costs of {name}"):
                entry = describe(name, failed)
            add_own_network(Settings.load(), name, entry)
            Console().print(f"{name} was added with {len(entry['cells'])} cells; the next start takes it up")

    return app


def _checked(name: str) -> set[str]:
    """Prints a table of verdicts; gives the stems that do not work.

    Raises:
        UnknownNameError: timm has no such network.
        StageError: No stem works.
    """
    from stillhouse.distill.catalogue import refused  # noqa: PLC0415 - torch is for these commands alone
    from stillhouse.service.cell_check import STEPS, cells_of, check_cell  # noqa: PLC0415

    cells: dict[str, Json] = {}
    table = Table("stem", "size", *STEPS, "seconds", "reason")
    with Console().status(f"checking {name}"):
        for size, stem in cells_of(name):
            verdict = cells[f"{name}|{stem}|{size}"] = check_cell(name, size, stem).to_json()
            marks = ["yes" if verdict[step] else "no" for step in STEPS]
            table.add_row(stem, str(size), *marks, f"{verdict['seconds']:.0f}", verdict.get("reason", ""))
    Console().print(table)
    failed = {stem for _, stem in refused({"cells": cells})}
    if failed >= {key.split("|")[1] for key in cells}:
        raise StageError(f"{name} cannot be a student: none of its stems builds, trains and exports")
    return failed
