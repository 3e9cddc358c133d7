"""The command line: ``stillhouse run``, ``up``, ``serve``, ``controller``, ``demo``, ``client`` and more.

A request that cannot be met ends with one message and exit code 2; a failure on our side with exit code 1. A command's
module is loaded when the command is called for, so that a small one does not wait for what the large ones need.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from stillhouse import __version__

MODULES = {
    "run": "cli_run",
    "demo": "cli_run",
    "up": "cli_serve",
    "serve": "cli_serve",
    "controller": "cli_serve",
    "estimate": "cli_estimate",
    "catalogue": "cli_catalogue",
    "client": "cli_client",
    "keys": "cli_keys",
    "audit": "cli_keys",
    "tidy": "cli_tidy",
    "agent": "cli_agent",
    "stage": "cli_serve",
}
"""Command -> the module whose ``app`` holds it."""


class _Lazy(TyperGroup):
    """The commands of ``MODULES`` beside its own."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, as the help shows them."""
        return [*MODULES, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, its module loaded now."""
        if cmd_name not in MODULES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"stillhouse.service.{MODULES[cmd_name]}")
        return typer.main.get_group(module.app).get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Lazy,
    help="From labelled pictures and a budget to ONNX models that fit the device.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)


@app.callback()
def _commands() -> None:
    """From labelled pictures and a budget to ONNX models that fit the device."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(app())


if __name__ == "__main__":
    main()
