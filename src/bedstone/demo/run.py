"""`bedstone demo`: every family's demonstration, one after the other, in one report.

A demonstration is a file in this folder with `SHARE`, its part of the time, and
`demonstrate(folder, minutes) -> Section`. Adding one is adding one file.
"""

import importlib
import pkgutil
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

from rich.console import Console

from bedstone import demo
from bedstone.report.pages import Section, write_report
from bedstone.train.logs import clock


def demonstrations() -> list[ModuleType]:
    """The modules of this folder that demonstrate something, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(demo.__path__))
    modules = [importlib.import_module(f"bedstone.demo.{name}") for name in names if name != "run"]
    return [module for module in modules if hasattr(module, "demonstrate")]


def run_demo(out: str = "runs/demo", minutes: float = 10.0) -> Path:
    """Train a small model of each family, without a network, and write a report.

    Args:
        out: the folder for the runs, their models and report.html.
        minutes: of training, shared by all parts of the demo.

    Example:
        bedstone demo --minutes 4
    """
    console = Console()
    began = time.monotonic()
    modules = demonstrations()
    total = sum(module.SHARE for module in modules)
    sections: list[Section] = []
    for module in modules:
        folder = Path(out) / module.__name__.rpartition(".")[2]
        section = module.demonstrate(folder, minutes * module.SHARE / total)
        section.commands = {_typed(line): remark for line, remark in section.commands.items()}
        sections.append(section)
    report = write_report(
        Path(out) / "report.html",
        "Bedstone: the demo",
        f"Trained from nothing on this machine, in {clock(time.monotonic() - began)}, "
        "on data that every Python carries and on drawn scenes.",
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
