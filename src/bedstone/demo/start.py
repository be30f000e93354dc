"""`bedstone demo`: what models do, in minutes, offline, in one report.

The short demo uses models at hand (`tour`); the full one trains a small model of each family.
"""

import importlib
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from bedstone.demo.run import Demo
from bedstone.demo.tour import tour
from bedstone.report.pages import write_report
from bedstone.train.logs import clock

SHORT, FULL = 3.5, 10.0  # minutes, where none are given
DEMOS = (
    "bert",
    "clip",
    "draw",
    "gpt",
    "translate",
    "vlm",
)  # files of this folder, each with a `DEMO`


def demos() -> dict[str, Demo]:
    """The demos by the names of their files."""
    return {name: importlib.import_module(f"bedstone.demo.{name}").DEMO for name in DEMOS}


def run_demo(out: str = "runs/demo", minutes: float = 0.0, full: bool = False) -> Path:
    """Show what foundation models do, in minutes, offline, and write a report.

    Talk to a chat model, adapt it, find images by words, ask about them, draw from words, and watch
    a translator and a GPT learn from nothing. With --full, a small model of each family is trained
    from nothing.

    Args:
        out: the folder for the runs, their models and report.html.
        minutes: minutes in all; of --full, of training (default: 3.5, and 10 with --full).
        full: train every model anew.

    Example:
        bedstone demo
        bedstone demo --full --minutes 16
    """
    console, began = Console(), time.monotonic()
    if full:
        parts = demos()
        total, minutes = sum(demo.share for demo in parts.values()), minutes or FULL
        sections = [
            demo.run(Path(out) / name, minutes * demo.share / total, console)
            for name, demo in parts.items()
        ]
        made = "Models trained from random weights on this machine"
    else:
        sections = tour(Path(out), minutes or SHORT, console, demos())
        made = "Made on this machine"
    for section in sections:
        section.commands = {_typed(line): remark for line, remark in section.commands.items()}
    report = write_report(
        Path(out) / "report.html",
        "Bedstone: the demo",
        f"{made}, in {clock(time.monotonic() - began)}, without a network, on data that every "
        "Python carries and on drawn scenes.",
        sections,
    )
    console.print(f"\nReport: [bold]{report}[/bold]\n")
    for section in sections:
        for command, remark in section.commands.items():
            console.print(f"  [dim]{remark}[/dim]\n  {command}", highlight=False, soft_wrap=True)
    return report


def _typed(command: str) -> str:
    """The command as it can be typed here, where the environment may not be activated."""
    if shutil.which("bedstone"):
        return command
    program = Path(sys.executable).with_name("bedstone")
    here = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return command.replace("bedstone", str(here), 1)
