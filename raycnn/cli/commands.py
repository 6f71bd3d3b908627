"""The commands, in the groups of `raycnn --help`, imported lazily."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raycnn.config.renamed import COMMANDS as RENAMED
from raycnn.config.renamed import renamed

GROUPS = {
    "Prepare": {
        "list": ("list:show", "List models, data sets, options; recipes, runs and searches"),
        "check": ("check:check", "Check a job without training it"),
        "data": ("data:data", "Inspect a data set"),
        "init": ("init:init", "Write a spec for a folder of pictures"),
        "summary": ("summary:summary", "Show a network layer by layer"),
        "schema": ("schema:schema", "Print the JSON schema of a spec, for editors"),
    },
    "Train": {
        "train": ("train:train", "Train a job"),
        "resume": ("train:resume", "Resume a run from its last checkpoint"),
        "tune": ("tune:tune", "Search the settings of a job"),
    },
    "Use": {
        "eval": ("eval:evaluate", "Evaluate a run, class by class"),
        "predict": ("predict:predict", "Classify pictures"),
        "report": ("report:report", "Write the report of a run or search"),
        "compare": ("compare:compare", "Compare runs"),
        "export": ("export:export", "Write a network for other programs"),
    },
    "Cluster": {
        "submit": ("submit:submit", "Train a job on a Ray cluster"),
        "status": ("status:status", "Show the status of a submitted job"),
        "logs": ("logs:logs", "Show the output of a submitted job"),
        "stop": ("stop:stop", "Save and stop a submitted job"),
        "fetch": ("fetch:fetch", "Copy a run from a cluster"),
    },
    "Examine": {
        "doctor": ("doctor:doctor", "Check versions and devices"),
        "compare-devices": ("compare_devices:compare_devices", "Compare steps on devices"),
        "lr-finder": ("lr_finder:lr_finder", "Suggest a learning rate"),
        "verify": ("verify:verify", "Kill, resume and compare a training"),
    },
}
COMMANDS = {name: target for group in GROUPS.values() for name, (target, _) in group.items()}


class LazyGroup(TyperGroup):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if message := renamed(RENAMED, "command", cmd_name):
            ctx.fail(message)
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(getattr(import_module(f"raycnn.cli.{module}"), function))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group, commands in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(requested: bool) -> None:
    if requested:
        from raycnn import __version__

        print(f"raycnn {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Train CNN classifiers from one YAML job spec: in one process, or on Ray."""
