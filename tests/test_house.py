"""The house: imports run one way, files stay small, nothing heavy or unsafe slips in."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    {"cli"},
    {"demo"},
    {"commands"},
    {"inspect"},
    {"recipes"},
    {"evaluate", "serve"},
    {"tasks", "train"},
    {"checkpoints", "objectives", "report"},
    {"diffusion", "generation", "metrics"},
    {"models"},
    {"data"},
    {"nn"},
    {"files", "settings", "runtime", "errors"},
]
BASE = len(LAYERS) - 1  # its files stand side by side in one folder and may use each other
LIMIT = 900  # lines

# Optional extras and what only tests use: importing Bedstone must not need them.
EXTRAS = {"matplotlib", "tensorboard", "sentencepiece", "transformers", "diffusers", "peft"}
EXTRAS |= {"gradio", "fastapi", "uvicorn", "optuna", "captum", "lancedb", "ray", "pytest"}
EXTRAS |= {"hypothesis", "torchvision", "prometheus_client", "openai", "lm_eval", "sacrebleu"}
EXTRAS |= {"sklearn", "nervaluate", "torchmetrics", "rouge_score"}

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


def test_files_stay_small():
    sizes = {str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in FILES}
    assert {name: lines for name, lines in sizes.items() if lines > LIMIT} == {}


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
