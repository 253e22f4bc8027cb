"""`agentserving ui`: serves the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import sys
import webbrowser

import click

from agentserving_cli.connection import fail, reason_of
from agentserving_cli.program_commands import Connect, Where
from agentserving_cli.ui.server import Server, Source


def ui_command(where: Where) -> click.Command:
    @click.command()
    @click.option("--port", type=click.IntRange(0, 65535), default=0, help="0, the default: any free one.")
    @click.option("--open/--no-open", "opens", default=True, help="Open a browser, if this is a terminal.")
    @where
    def ui(connect: Connect, port: int, opens: bool) -> None:
        """Show programs, engines, the policy and runs on a page of this machine, live. Read-only.

        Only who has the printed URL can read it, and only from this machine. Ctrl-C ends it.
        """
        with connect() as client:
            # So that a cluster that is not there is a message and no empty page.
            next(client.list_programs(page_size=1), None)
            try:
                server = Server(Source(client), lambda error: reason_of(error, client.address), port)
            except OSError as error:
                fail(f"port {port} cannot be listened on: {error.strerror}; leave --port out to use a free one")
            click.echo(f"{server.url}\nCtrl-C ends it.")
            if opens and sys.stdout.isatty():
                webbrowser.open(server.url)
            with server, contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()

    return ui
