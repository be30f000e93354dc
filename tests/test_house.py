"""The house: imports run one way, files and names keep the rules, nothing unsafe slips in."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bedstone.models.families import FAMILIES
from bedstone.recipes.base import METHODS
from bedstone.tasks.pipeline import TASKS

SOURCE = Path(__file__).parent.parent / "src" / "bedstone"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    ".".join(("bedstone", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in FILES
}

# From top to bottom. A name is a folder of the package, or a file beside them.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"demo"},
    {"commands"},
    {"agent"},
    {"inspect"},
    {"recipes"},
    {"evaluate", "serve"},
    {"tasks", "train"},
    {"checkpoints", "objectives", "report"},
    {"remote"},
    {"diffusion", "generation", "metrics"},
    {"models"},
    {"data"},
    {"nn", "sandbox", "bulk"},
    {"files", "outputs", "reading", "settings", "published_keys", "runtime", "measured"}
    | {"errors", "config", "ranks"},
]
BASE = len(LAYERS) - 1  # its files stand side by side in one folder and may use each other
LEAST, MOST = 60, 600  # lines of a file
# Files outside these sizes, each with the reason.
SIZES = {
    "errors.py": "the one error class, which everything imports",
    "config.py": "an old import that is kept",
    "__init__.py": "the public names",
    "__main__.py": "the command line by `python -m bedstone`",
    "models/resnet/published.py": "every family has this file",
    "models/dalle/published.py": "every family has this file",
    "nn/dropout.py": "one layer with a hand-written gradient, used by several",
    "checkpoints/load.py": "the one way to open a model",
    **dict.fromkeys(
        ("recipes/dpo.py", "recipes/kto.py", "recipes/reward.py", "recipes/sft.py"),
        "a training method; recipes/preferences.py and supervised.py hold what is shared",
    ),
    **dict.fromkeys(
        ("recipes/grpo.py", "recipes/rloo.py"),
        "a training method; recipes/reinforcement.py holds what is shared",
    ),
}
# Files that one other file of their folder alone imports, each with the reason.
ALONE = {
    "data/text/completions.py": "one kind of examples, beside conversations.py",
    "demo/tour.py": "the short demo; the full one is the other files",
    "cli.py": "the command line; tests and the installed script call it, too",
    "commands/evaluate.py": "a command; cards measure by it",
    "commands/generate.py": "a command; completion of files takes its settings",
    "commands/join.py": "a command, and the shares that it joins; other commands may make shares",
    "commands/imagine_rows.py": "rows in other processes; commands/imagine.py is options and files",
    "commands/run.py": "a command; prompting prints results as it does",
    "tasks/text/text_generation.py": "a task, whose options that behind an endpoint has too",
    "agent/transcript.py": "what is kept of a run; the loop is what is done",
    "agent/memory.py": "notes on disk; the other tools keep nothing",
    "tasks/text/writers.py": "models here and behind endpoints under one interface",
    "commands/preview.py": "all that previews load; the commands of training load nothing heavy",
    "checkpoints/gguf_blocks.py": "numbers of files whose headers are read without them",
    "checkpoints/probe_outputs.py": "outputs and their comparison; no network is known there",
    "checkpoints/probes.py": "what networks are given and give; the other file stores and compares",
    "checkpoints/peft.py": "the layout of another library's files",
    "checkpoints/sentence_transformers.py": "the layout of another library's files",
    "nn/fast/products.py": "what the engine does for networks that don't write",
    "generation/lookup.py": "drafts of tokens and when they pay; no network is read there",
    "tasks/media/enlarging.py": "how given images are enlarged; unclip.py opens every generator",
    "tasks/search/durable.py": "what another library wrote, brought to the disk and checked",
    "data/text/chat_template.py": "a process of its own, which imports nothing of Bedstone",
    "sandbox/kernel.py": "what the kernel is called for; what runs in it is the other files'",
    "checkpoints/sizes.py": "what a file says against what its weights bear out",
    "inspect/image_targets.py": "what is explained of pictures; text_targets.py reads texts",
    "inspect/explanation.py": "what was found, and its page; explain.py is how it is found",
    "train/monitor.py": "what a run is judged by; rollouts only carry it from step to step",
    "inspect/output_checks.py": "checks of an audit on what a model decides, makes and finds",
    "inspect/text_checks.py": "checks of an audit on texts",
    "inspect/question_checks.py": "checks of an audit on questions",
    "data/shards.py": "files of stores elsewhere; sources say what a name may be",
    "data/tar.py": "one format of files, which no library here reads",
    "data/near.py": "similarity of texts and pictures; what it means for a run is another file's",
    "data/text/synonyms.py": "a reader of thesauri; no change of text needs one",
    "evaluate/chat_judge.py": "a judge of answers, in Python too; rewards.py are all kinds",
    "evaluate/judges.py": "networks that judge; what is judged is another file's",
    "recipes/causal_lm.py": "a training method",
    "recipes/diffusion.py": "a training method",
    "recipes/prior.py": "a training method",
    **dict.fromkeys(
        (
            "serve/completions.py",
            "serve/guide.py",
            "serve/images.py",
            "serve/moderations.py",
            "serve/responses.py",
            "serve/openapi.py",
            "serve/forms.py",
        ),
        "routes, and what one of them needs; serve/routes.py has those of all files",
    ),
    "serve/playground.py": "a page of its own; serve/app.py has the routes of all files",
    "tasks/image_text/image_to_text.py": "a task",
    "tasks/text/text2text_generation.py": "a task",
    "tasks/image_text/visual_question_answering.py": "a task",
}
# Files of tasks/ that bear no task's name: what several tasks share, and rooms of alike tasks.
SHARED_TASK_FILES = {
    "task.py",
    "pipeline.py",
    "text/engine.py",
    "text/augment.py",  # models that augment what others learn from
    "text/feature_extraction.py",  # and sentence-similarity
    "text/question_answering.py",  # and information-extraction
    "text/prompting.py",  # tasks that a decoder does by its prompt
    "text/prompted_tasks.py",
    "text/writers.py",  # what they are read by
    "text/remote_generation.py",  # text-generation behind an endpoint
    "text/text2text_generation.py",  # and summarization
    "images/engine.py",
    "images/image_classification.py",  # and the two other tasks on images alone
    "image_text/engine.py",
    "media/generator.py",
    "media/dalle.py",  # what draws by codes, behind the same tasks
    "media/unclip.py",  # likewise by embeddings
    "media/enlarging.py",  # likewise what enlarges given images
    "media/files.py",
    "media/tasks.py",
    "search/index.py",
    "search/durable.py",
    "search/nearest.py",
    "search/fill.py",
    "search/recommend.py",
    "moderation/policy.py",
    "moderation/scorers.py",
    "moderation/fit.py",
}
# Words of no field: no identifier has one.
BANNED = ("told", "telling", "sighted", "asked", "posts", "alike", "companion", "companions")
KEPT_NAMES = {
    "told_size",  # of a configuration that is saved in config.json and in recipes
}

# Optional extras and what only tests use: importing Bedstone must not need them.
EXTRAS = {"matplotlib", "tensorboard", "sentencepiece", "transformers", "diffusers", "peft"}
EXTRAS |= {"gradio", "fastapi", "uvicorn", "optuna", "captum", "lancedb", "ray", "pytest"}
EXTRAS |= {"hypothesis", "torchvision", "prometheus_client", "openai", "lm_eval", "sacrebleu"}
EXTRAS |= {"wandb", "mlflow"}
EXTRAS |= {"llguidance", "sklearn", "nervaluate", "torchmetrics", "rouge_score", "playwright"}

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
}

UNSAFE_OPTIONS = {"allow_pickle", "trust_remote_code"}


def layer(module: str) -> int:
    part = module.split(".")[1]
    found = [number for number, names in enumerate(LAYERS) if part in names]
    assert found, f"{module}: {part!r} has no place in LAYERS; see the design's second chapter"
    return found[0]


def imports(module: str, path: Path, tree: ast.Module) -> set[str]:
    """The Bedstone modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "bedstone"}
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                relative = "." * node.level + start
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                start = importlib.util.resolve_name(relative, package)
            if start.split(".")[0] == "bedstone":
                deeper = {f"{start}.{name.name}" for name in node.names} & set(MODULES)
                found |= deeper or {start}
    return found - {module}


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    wrong = []
    for module, targets in graph.items():
        if module == "bedstone":
            continue  # the public names, fetched lazily from anywhere
        for target in targets - {"bedstone"}:
            here, there = layer(module), layer(target)
            neighbours = module.split(".")[1] == target.split(".")[1] or here == BASE
            if there < here or (there == here and not neighbours):
                wrong.append(f"{module} imports {target}")
    return wrong


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
GRAPH = {module: imports(module, MODULES[module], tree) for module, tree in TREES.items()}


def test_imports_run_down():
    assert arrows_up(GRAPH) == []


def test_imports_make_no_circle():
    inner = {module: targets - {"bedstone"} for module, targets in GRAPH.items()}
    inner.pop("bedstone")
    assert circle(inner) == []


def test_the_package_itself_is_not_imported_from_inside():
    # `from bedstone import x` would run through every public name.
    assert [m for m, targets in GRAPH.items() if "bedstone" in targets and m != "bedstone"] == []


def test_a_wrong_arrow_would_be_found():
    """The checks above, on a house built wrong."""
    assert arrows_up({"bedstone.nn.masks": {"bedstone.models.gpt.network"}})
    assert arrows_up({"bedstone.nn.masks": {"bedstone.data.text.causal_lm"}})
    assert arrows_up({"bedstone.files": {"bedstone.nn.masks"}})
    assert not arrows_up({"bedstone.nn.blocks": {"bedstone.nn.masks", "bedstone.errors"}})
    assert not arrows_up({"bedstone.files": {"bedstone.errors"}, "bedstone": {"bedstone.cli"}})
    assert circle({"bedstone.nn.a": {"bedstone.nn.b"}, "bedstone.nn.b": {"bedstone.nn.a"}})
    tree = ast.parse("def f():\n    from ..models.gpt import network\n    import bedstone.cli")
    assert imports("bedstone.nn.a", Path("a.py"), tree) == {
        "bedstone.models.gpt.network",
        "bedstone.cli",
    }


def test_files_are_neither_fragments_nor_heaps():
    sizes = {
        str(path.relative_to(SOURCE)): len(path.read_text().splitlines())
        for path in FILES
        if path.name != "__init__.py"
    }
    wrong = {name: lines for name, lines in sizes.items() if not LEAST <= lines <= MOST}
    assert {name: lines for name, lines in wrong.items() if name not in SIZES} == {}


def test_no_file_is_a_fragment_of_its_neighbour():
    users: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, targets in GRAPH.items():
        for target in targets & set(users):
            users[target].add(module)
    alone = [
        str(MODULES[module].relative_to(SOURCE))
        for module, found in users.items()
        if len(found) == 1 and next(iter(found)).rpartition(".")[0] == module.rpartition(".")[0]
    ]
    families = {name for name in alone if re.fullmatch(r"models/\w+/(network|published)\.py", name)}
    assert sorted(set(alone) - set(ALONE) - families) == []


def identifiers(tree: ast.Module) -> set[str]:
    """Every name that the code gives to something, or uses."""
    found = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.add(value)
    return found


def words_of(name: str) -> list[str]:
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)
    return [part.lower() for part in parts]


def test_names_are_the_field_s():
    wrong = {
        module: sorted(bad)
        for module, tree in TREES.items()
        if (
            bad := {
                name for name in identifiers(tree) - KEPT_NAMES if set(words_of(name)) & set(BANNED)
            }
        )
    }
    assert wrong == {}
    files = {str(path.relative_to(SOURCE)) for path in FILES}
    assert [name for name in files if set(words_of(name)) & set(BANNED)] == []


def test_a_banned_word_would_be_found():
    tree = ast.parse("class ToldRows: pass\ndef f(told_rows): return x.asked")
    found = {name for name in identifiers(tree) if set(words_of(name)) & set(BANNED)}
    assert found == {"ToldRows", "told_rows", "asked"}
    assert words_of("masked_fill") == ["masked", "fill"]


def test_each_family_is_a_folder_in_one_table():
    folders = {path.parent.name for path in (SOURCE / "models").glob("*/network.py")}
    named = {home.split(".")[2] for home in FAMILIES.values()}
    assert folders == named | {"resnet"}  # a part of others, published with them
    for layout, home in FAMILIES.items():
        assert layout in importlib.import_module(home).LAYOUTS, layout
    tables = [m for m, tree in TREES.items() if "FAMILIES" in assigned(tree)]
    assert tables == ["bedstone.models.families"]


def test_each_method_is_a_file_in_one_table():
    files = {path.stem for path in (SOURCE / "recipes").glob("*.py")} - {"__init__", "base"}
    # recipes as they are given, those of the package, and what some methods share
    files -= {"given", "library", "preferences", "reinforcement", "stages"}
    assert files == set(METHODS) == {place.partition(":")[0] for place in METHODS.values()}
    tables = [m for m, tree in TREES.items() if "METHODS" in assigned(tree)]
    assert "bedstone.recipes.base" in tables


def test_each_task_is_a_file_that_bears_its_name_in_one_table():
    homes = {name: place.partition(":")[0] for name, place in TASKS.items()}
    shared = {file.removesuffix(".py").replace("/", ".") for file in SHARED_TASK_FILES}
    for name, home in homes.items():
        assert home in shared or home.rpartition(".")[2] == name.replace("-", "_"), name
    files = {
        str(path.relative_to(SOURCE / "tasks"))
        for path in (SOURCE / "tasks").rglob("*.py")
        if path.name != "__init__.py"
    }
    named = {home.replace(".", "/") + ".py" for home in homes.values()}
    assert files - named - SHARED_TASK_FILES == set()


def assigned(tree: ast.Module) -> set[str]:
    """Names that are assigned at the top of a file."""
    found = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return found


def test_package_files_stay_nearly_empty():
    inits = [p for p in FILES if p.name == "__init__.py" and p.parent != SOURCE]
    assert inits
    assert [str(p) for p in inits if len(p.read_text().splitlines()) > 10] == []


def test_every_file_says_what_it_is_for():
    silent = [
        m for m, p in MODULES.items() if p.name != "__init__.py" and not ast.get_docstring(TREES[m])
    ]
    assert silent == []


def unsafe(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [n.name for n in node.names if n.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = {f"{module}.{n.name}" for n in node.names}
            found += [module] if module.split(".")[0] in PICKLES else sorted(names & UNSAFE_CALLS)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_OPTIONS:
            found += [] if ast.unparse(node.value) == "False" else [node.arg]
    return found


def test_nothing_reads_pickle_or_runs_others_code():
    assert {m: found for m, tree in TREES.items() if (found := unsafe(tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(x)",
        "f = yaml.load",
        "from torch import load",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_an_unsafe_line_would_be_found(line):
    assert unsafe(ast.parse(line))


def loaded_after(code: str) -> set[str]:
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_bedstone_imports_no_extra():
    assert loaded_after("import bedstone") & EXTRAS == set()


def test_importing_every_module_imports_no_extra():
    lines = [f"import {module}" for module in MODULES if not module.endswith("__main__")]
    assert loaded_after("\n".join(lines)) & EXTRAS == set()


needs_cli = pytest.mark.skipif(not (SOURCE / "cli.py").exists(), reason="no command line yet")


@needs_cli
def test_help_imports_no_torch():
    code = "import sys; sys.argv = ['bedstone', '--help']\nfrom bedstone.cli import main\n"
    code += "try: main()\nexcept SystemExit as done: assert not done.code"
    assert "torch" not in loaded_after(code)


@needs_cli
def test_help_answers_within_a_second():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        command = [sys.executable, "-m", "bedstone.cli", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert "usage" in done.stdout.lower()
        if times[-1] < 1:
            return
    pytest.fail(f"the quickest of five took {min(times):.1f} s")
