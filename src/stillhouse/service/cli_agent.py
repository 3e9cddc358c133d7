"""``stillhouse agent``: measures models on this machine for a server elsewhere."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from stillhouse.service.cli_messages import messages

app = typer.Typer()


@app.command()
def agent(
    url: Annotated[str, typer.Argument(help="The server, such as http://192.168.0.2:8000.")],
    name: Annotated[str, typer.Option(help="What jobs shall call this device.")],
    key: Annotated[
        str | None,
        typer.Option(envvar="STILLHOUSE_API_KEY", help="A key with the scope worker.", show_default=False),
    ] = None,
) -> None:
    """Measure latency and memory of models on this machine, for jobs whose budget names it (--device NAME).

    On a small device there is no need for all of Stillhouse: python -m stillhouse.export.agent does the same with
    onnxruntime, numpy and httpx alone.
    """
    with messages(logging.INFO):
        from stillhouse.export.agent import Agent  # noqa: PLC0415 - onnxruntime, once it is needed

        with Agent(url, name, key=key) as device:
            device.run()
