"""Tools of Bedstone's own: a calculator, files of one folder, Python in the sandbox, search in
texts, and models that see and draw.

They are named as on the command line: `calculator`, `files=notes/`, `python`, `search=docs/`,
`memory=notes/`, `caption=MODEL`, `ask=MODEL`, `classify=MODEL`, `imagine=MODEL`, `mcp=COMMAND`, or
`FILE.py:FUNCTION`.
"""

import ast
import atexit
import math
import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bedstone.agent.mcp import McpServer, renamed
from bedstone.agent.memory import memory_tools
from bedstone.agent.tools import Tool, tool
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.rewards import load_function
from bedstone.files import inside, write_text
from bedstone.reading import read_text, to_path
from bedstone.sandbox.run import Sandbox
from bedstone.tasks.pipeline import pipeline

LARGEST = 1 << 20  # bytes of a file that is read or written
PASSAGE = 600  # characters of a passage that is searched
FOUND = 5  # passages of a search
TEXTS = (".txt", ".md", ".rst", ".csv", ".json", ".jsonl", ".py", ".html")
EMBEDDER = "minilm"


# A calculator.

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": round,
    "min": min,
    "max": max,
}
_FUNCTIONS |= {"log": math.log, "exp": math.exp, "sin": math.sin, "cos": math.cos}
_DIGITS = 1000  # of a result


def calculator(expression: str) -> str:
    """Works out an expression of numbers, such as (3 + 4) * 2 ** 5 or sqrt(2)."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BedstoneError(f"{expression[:80]!r} is no expression of numbers.") from error
    if len(expression) > _DIGITS:
        raise BedstoneError(f"the expression has over {_DIGITS} characters.")
    value = _value(tree.body)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value)


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and _power_digits(left, right) > _DIGITS:
            raise BedstoneError("the power has too many digits.")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    ):
        return _FUNCTIONS[node.func.id](*map(_value, node.args))
    if isinstance(node, ast.Name) and node.id in ("pi", "e"):
        return getattr(math, node.id)
    raise BedstoneError(
        f"{ast.unparse(node)[:80]!r} can't be worked out; there are numbers, + - * / // % **, "
        f"{', '.join(_FUNCTIONS)}, pi, e."
    )


def _power_digits(left: Any, right: Any) -> float:
    return abs(right) * math.log10(abs(left) + 1) if isinstance(right, int | float) else 0.0


# Files of one folder.


def file_tools(folder: str | Path) -> list[Tool]:
    """Tools that list, read and write the files of one folder, and reach nothing outside it.

    Raises:
        BedstoneError: there is no such folder.
    """
    home = to_path(str(folder), "files").resolve()
    if not home.is_dir():
        raise BedstoneError(f"files={folder}: is no folder. Make it, or name another.")

    def list_files() -> list[str]:
        """Lists the files of the folder."""
        found = (p for p in sorted(home.rglob("*")) if p.is_file() and not p.is_symlink())
        return [path.relative_to(home).as_posix() for path in found][:500]

    def read_file(path: str) -> str:
        """Reads a text file of the folder."""
        return read_text(_within(home, path), LARGEST)

    def write_file(path: str, text: str) -> str:
        """Writes a text file in the folder; one of that name is replaced."""
        place = _within(home, path)
        if len(text.encode()) > LARGEST:
            raise BedstoneError(f"{path}: has over {LARGEST >> 20} MB.")
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, text)
        return f"{path}: {len(text):,} characters written"

    return [
        tool(list_files, effects=False),
        tool(read_file, effects=False),
        tool(write_file, untrusted=False),
    ]


def _within(home: Path, path: str) -> Path:
    """A file of the folder. Raises BedstoneError for a name that leads out, or has two forms."""
    try:
        if "\\" in path:  # rules have read it as it is written
            raise BedstoneError("backslash")
        return inside(home, path)
    except BedstoneError as error:
        raise BedstoneError(
            f"{path[:80]!r}: is no file of the folder; expected a plain relative name with /."
        ) from error


# Python.


def python_tool() -> Tool:
    """A tool that runs a program in the sandbox: without network, files or other processes.

    Raises:
        BedstoneError: the kernel can't keep programs in here.
    """
    sandbox = Sandbox()

    def run_python(program: str) -> str:
        """Runs a Python program, without network or files, and returns what it prints."""
        found = sandbox.run(program)
        text = found.stdout + (f"\n{found.stderr}" if found.stderr else "")
        return text if found.passed else f"{text}\n{found.verdict}: {found.reason}".strip()

    return tool(run_python, effects=False, untrusted=False)


# Search.


def search_tool(place: str | Path, model: str = EMBEDDER) -> Tool:
    """A tool that finds passages of texts by their meaning.

    Args:
        place: a text file, or a folder of them.
        model: of sentence embeddings.

    Raises:
        BedstoneError: there are no texts.
    """
    passages = list(read_passages(to_path(str(place), "search")))
    if not passages:
        raise BedstoneError(
            f"search={place}: holds no texts ({', '.join(TEXTS)}). Name another folder."
        )
    task = pipeline("semantic-search", model, texts=[text for _, text in passages])

    def search(query: str) -> list[dict[str, Any]]:
        """Finds passages of the documents by their meaning, with the file that each is in."""
        found = task(query, top_k=FOUND)
        return [
            {
                "source": passages[one["corpus_id"]][0],
                "text": passages[one["corpus_id"]][1],
                "score": round(float(one["score"]), 3),
            }
            for one in found
        ]

    return tool(search, effects=False)


def read_passages(place: Path) -> Iterable[tuple[str, str]]:
    """Passages of text files: the file's name, and a text of at most `PASSAGE` characters."""
    home = place if place.is_dir() else place.parent
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    for file in files:
        if not file.is_file() or file.is_symlink() or file.suffix.lower() not in TEXTS:
            continue
        name = file.relative_to(home).as_posix()
        held = ""
        for block in read_text(file, 16 * LARGEST).split("\n\n"):
            block = " ".join(block.split())
            if held and len(held) + len(block) > PASSAGE:
                yield name, held
                held = ""
            while len(block) > PASSAGE:
                cut = block.rfind(" ", PASSAGE // 2, PASSAGE)
                cut = PASSAGE if cut < 0 else cut
                yield name, block[:cut]
                block = block[cut:].lstrip()
            held = f"{held}\n{block}".strip()
        if held:
            yield name, held


# Models that see and draw; images are files of the agent's folder.


def caption_tool(model: str, folder: Path) -> Tool:
    """A tool that describes an image."""
    task = pipeline("image-to-text", model)

    def caption(image: str) -> str:
        """Describes an image of the folder."""
        return str(task(str(_within(folder, image)))[0]["generated_text"])

    return tool(caption, effects=False)


def ask_tool(model: str, folder: Path) -> Tool:
    """A tool that answers questions about an image."""
    task = pipeline("visual-question-answering", model)

    def ask_image(image: str, question: str) -> str:
        """Answers a question about an image of the folder."""
        return str(task(str(_within(folder, image)), question=question)[0]["answer"])

    return tool(ask_image, effects=False)


def classify_tool(model: str) -> Tool:
    """A tool that gives a text its label."""
    task = pipeline("text-classification", model)

    def classify(text: str) -> str:
        """Gives the class of a text."""
        found = task(text)[0]
        return f"{found['label']} ({found['score']:.2f})"

    return tool(classify, effects=False, untrusted=False)


def imagine_tool(model: str, folder: Path) -> Tool:
    """A tool that draws an image into the folder."""
    task = pipeline("text-to-image", model)

    def imagine(text: str, name: str) -> str:
        """Draws an image of a text, and writes it into the folder as NAME.png."""
        place = _within(folder, name if name.endswith(".png") else f"{name}.png")
        image = task(text)
        image = image[0] if isinstance(image, list) else image
        image["image"].save(place)
        return f"{place.name} drawn"

    return tool(imagine, untrusted=False)


_SEEING = {"caption": caption_tool, "ask": ask_tool, "imagine": imagine_tool}
_NEEDING = ("files", "search", "memory", "classify", "mcp", *_SEEING)  # what stands after =
NAMES = ("calculator", "python", *_NEEDING)


def named_tools(names: Iterable[str]) -> list[Tool]:
    """Tools by their names on the command line.

    Raises:
        BedstoneError: one is unknown, or lacks what it needs.
    """
    given = list(names)
    folder = next((each.partition("=")[2] for each in given if each.startswith("files=")), ".")
    found: list[Tool] = []
    for each in given:
        name, _, value = each.partition("=")
        if name in _NEEDING and not value:
            raise BedstoneError(f"tools: {each!r}: needs what it works on, such as {name}=NAME.")
        if name == "calculator":
            found.append(tool(calculator, effects=False, untrusted=False))
        elif name == "python":
            found.append(python_tool())
        elif name == "files":
            found += file_tools(value)
        elif name == "search":
            found.append(search_tool(value))
        elif name == "memory":
            found += memory_tools(value)
        elif name == "classify":
            found.append(classify_tool(value))
        elif name in _SEEING:
            found.append(_SEEING[name](value, to_path(folder, "files").resolve()))
        elif name == "mcp":
            server = McpServer(value)
            atexit.register(server.close)
            own = server.tools()
            taken = {one.name for one in found}
            found += renamed(own, "mcp") if taken & {one.name for one in own} else own
        elif ":" in each:
            found.append(tool(load_function(each, "tools")))
        else:
            raise BedstoneError(
                f"tools: {each!r} is unknown{nearest(name, NAMES)}; there are {', '.join(NAMES)}, "
                "and FILE.py:FUNCTION."
            )
    return found
