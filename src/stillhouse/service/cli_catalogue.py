"""``stillhouse catalogue``: does a network of timm work as a student here, and may the search choose it?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stillhouse.search.catalogue import Catalogue, by_pixels, said
from stillhouse.search.domain import PRECISIONS, Json
from stillhouse.search.errors import StageError, UserError
from stillhouse.service.cli_messages import messages
from stillhouse.service.own_networks import add_own_network
from stillhouse.service.settings import Settings
from stillhouse.service.wiring import Platform

MOST_PROCESSES = 4
"""Check at once: each takes a gigabyte, and trains the network for itself first."""

Name = Annotated[str, typer.Argument(help="A network's name in timm, such as mobilenetv3_rw.")]


def commands(messages: Callable[[], AbstractContextManager[None]]) -> typer.Typer:
    """The sub-commands; ``messages`` turns errors into a message and an exit code."""
    app = typer.Typer(help="Networks that can be students.", no_args_is_help=True)

    @app.command("list")
    def list_networks() -> None:
        """List the networks that the search may choose, those that failed their check, and why."""
        with messages():
            show(Platform(Settings.load()).ledger.catalogue() or {}, Console())

    @app.command()
    def check(name: Name) -> None:
        """Build, train, export and lower in precision a network at each size in each stem, and say what works.

        It takes some minutes.
        """
        with messages():
            _checked(name)

    @app.command()
    def add(name: Name) -> None:
        """Check a network, as ``check`` does, and count its costs; from the next start on, the search may choose it."""
        from stillhouse.distill.catalogue import describe, excluded, lacking  # noqa: PLC0415 - torch is for this command alone

        with messages():
            if name in Catalogue.load().archs:
                raise UserError(f"{name} is in the catalogue that ships with Stillhouse; nothing needs to be added")
            checks = _checked(name)
            without = excluded(checks).get(name, {})
            with Console().status(f"counting the costs of {name}"):
                entry = describe(name, without)
            entry |= {"lacks": lacking(checks).get(name, {}), "excluded": without}
            add_own_network(Settings.load(), name, entry)
            Console().print(f"{name} was added with {len(entry['cells'])} cells; the next start takes it up")

    return app


def show(catalogue: Mapping[str, Json], console: Console) -> None:
    """Prints what the workers published of networks: a line each, then what failed and why."""
    known = Catalogue.from_json(catalogue)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for title in ("network", "family", "stems", "sizes", "precisions", "weights"):
        table.add_column(title, no_wrap=title in ("network", "sizes", "weights"), overflow="fold")
    whys = []
    for name, entry in known.archs.items():
        failing = {precision for stem in entry.stems for precision in entry.lacks.get(stem, {})}
        whys += [
            f"{name} {said(place)}: {p}: {why}" for place, lacks in entry.lacks.items() for p, why in lacks.items()
        ]
        sizes = sorted({size for size, _ in entry.cells}, key=by_pixels)
        precisions = " ".join(each for each in PRECISIONS if each not in failing) if failing else "all"
        weights = "trained" if name in known.pretrained else "random"
        stems = " ".join(entry.stems)
        table.add_row(name, entry.family, stems, f"{sizes[0].short}-{sizes[-1].short}", precisions, weights)
    console.print(table)
    excluded = [
        f"{name} {said(place)}: {why}" for name, places in known.excluded.items() for place, why in places.items()
    ]
    for title, lines in (("excluded:", excluded), ("precisions that are not made, where a check failed:", whys)):
        console.print(title if lines else f"{title} none", highlight=False)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _checked(name: str) -> dict[str, Json]:
    """Prints a table of verdicts, and below it what failed and why; gives them as the table of all checks holds them.

    Raises:
        UnknownNameError: timm has no such network.
        StageError: No stem works.
    """
    from stillhouse.distill.catalogue import excluded  # noqa: PLC0415 - torch is for these commands alone
    from stillhouse.service.cell_check import STEPS, cells_of, check_cells, key_of  # noqa: PLC0415

    wanted, cells = cells_of(name), dict[str, Json]()
    table = Table("stem", "size", *STEPS, "seconds")
    with Console().status(f"checking {name}: {len(wanted)} cells") as status:
        for (_, size, stem), found in check_cells(wanted, min(MOST_PROCESSES, os.cpu_count() or 1)):
            verdict = cells[key_of(name, size, stem)] = found.to_json()
            status.update(f"checking {name}: {len(cells)} of {len(wanted)} cells")
            marks = ["yes" if verdict[step] else "no" for step in STEPS]
            table.add_row(stem, str(size), *marks, f"{verdict['seconds']:.0f}")
    Console().print(table)
    for key, verdict in cells.items():
        if "reason" in verdict:
            where = " ".join(key.split("|")[1:])
            Console().print(f"{where}: {verdict['reason']}", highlight=False, markup=False, soft_wrap=True)
    checks = {"cells": cells}
    if excluded(checks).get(name, {}).keys() >= {key.split("|")[1] for key in cells}:
        raise StageError(f"{name} cannot be a student: none of its stems builds, trains and exports")
    return checks


app = typer.Typer()
app.add_typer(commands(messages), name="catalogue")
