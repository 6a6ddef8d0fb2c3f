"""The command tree."""

import typer

from app.cli import serve
from app.cli.output import EXIT_CODES_HELP

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="LLM distillation, end to end.",
    epilog=EXIT_CODES_HELP,
)
for command in serve.COMMANDS:
    app.command()(command)
