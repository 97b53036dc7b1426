"""The `freiakd` command: a group whose commands are imported when they are called."""

from __future__ import annotations

import importlib
import os

import click

from freia_kd import __version__

COMMANDS = {
    "distill": "Make smaller classifiers of a teacher, without its training data.",
    "compare": "Compare methods on a teacher, and name the best for it.",
    "reproduce": "Reproduce the paper's Table 1, or its figure 2, 3 or 4.",
    "train-teacher": "Train a classifier on real data.",
    "extract": "Make a synthetic set from a teacher.",
    "sample": "Sample inputs from what a run has learned.",
    "compress": "Compress a teacher without any training.",
    "export": "Write a student for ONNX Runtime, torch.export or torch, and check the file.",
    "evaluate": "Measure a checkpoint, or the students of a run, on real data.",
    "toy": "Reproduce the paper's figure 2: flows on two-dimensional data.",
    "runs": "List the runs of a folder, and how each stands.",
    "inspect": "Say what a checkpoint or a run's folder holds.",
}


class LazyGroup(click.Group):
    """Commands by name; each is the object `command` of a module of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__)
        return module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="freiakd")
def main() -> None:
    """Compress a classifier without its training data."""
    # Waiting threads that spin make small nets many times slower on a busy machine; this must be
    # set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
