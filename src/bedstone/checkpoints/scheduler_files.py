"""`scheduler_config.json` of a pipeline's folder: how its network's signals were noised."""

from pathlib import Path

from bedstone.errors import BedstoneError
from bedstone.files import read_json, write_json
from bedstone.nn.noise_config import config_of, method_from, process_from
from bedstone.nn.noise_targets import Target
from bedstone.nn.noising import Process

NAME = "scheduler_config.json"
VERSION = "0.39.0"  # of diffusers, whose form is written


def read_scheduler(folder: str | Path) -> tuple[Process, Target, str]:
    """The process, what the network predicts, and our sampler of the one that is named.

    Raises:
        BedstoneError: there is no such file, or it says what isn't known.
    """
    path = Path(folder) / NAME
    config = read_json(path)
    if not isinstance(config, dict):
        raise BedstoneError(f"{path}: expected an object of settings; it is damaged.")
    try:
        return *process_from(config), method_from(config)
    except BedstoneError as error:
        raise BedstoneError(f"{path}: {error}") from error


def write_scheduler(
    folder: str | Path, process: Process, target: Target, method: str = "ddim"
) -> str:
    """Writes the file into an existing folder; gives the class that it names.

    Raises:
        BedstoneError: the method is unknown, or the disk refuses.
    """
    config = config_of(process, target, method)
    name = config.pop("_class_name")
    write_json(Path(folder) / NAME, {"_class_name": name, "_diffusers_version": VERSION, **config})
    return name
