"""The command tree."""

import typer

from app.cli import checkpoints, datasets, demo, projects, runs, serve
from app.cli.options import HOME_BEFORE, Home
from app.cli.output import EXIT_CODES_HELP

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    epilog=EXIT_CODES_HELP,
)


@app.callback()
def stillhouse(home: Home = None) -> None:
    """LLM distillation, end to end."""
    HOME_BEFORE.set(home)


for command in serve.COMMANDS:
    app.command()(command)
app.command("demo")(demo.demo)
app.command("import")(datasets.import_files)
app.add_typer(projects.app, name="projects")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(datasets.app, name="datasets")
app.add_typer(runs.app, name="runs")
