"""`bedstone explain`: what in an input a model's answer rests on, tested, as a page or a table."""

import inspect
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.data.images.decode import IMAGE_SUFFIXES
from bedstone.errors import BedstoneError
from bedstone.outputs import new_file

USUAL = "integrated-gradients,occlusion,attention-rollout"


def explain_(
    model: str,
    input: str,
    question: str | None = None,
    context: str | None = None,
    text_pair: str | None = None,
    text: tuple[str, ...] = (),
    task: str | None = None,
    target: str | None = None,
    method: str = USUAL,
    baseline: str = "auto",
    orders: int = 20,
    shuffles: int = 4,
    seed: int = 0,
    no_maps: bool = False,
    lens: bool = False,
    patch: str | None = None,
    probe: bool = False,
    out: str | None = None,
    overwrite: bool = False,
    *,
    precision: str = "fp32",
    as_json: bool = False,
) -> int:
    """Show what in an input a model's answer rests on, and whether that holds.

    Words of a text, cells of a picture and words of a prompt get scores: how much each adds to the
    number that is explained, such as the log-odds of the label. The scores are tested: whether they
    add up, whether what scores highest counts more than chance (deletion and insertion), whether
    they change when the weights are shuffled. The exit code is 1 where the explanation fails.

    Args:
        model: a folder (a model's or a run's), a name that `bedstone models` lists, or a hub id.
        input: a text, or the file of an image; with `probe`, a file of labelled rows.
        question: of the input: an image, or the text that holds the answer.
        context: the text that holds the answer, where the input is the question.
        text_pair: the second text of a pair, or the one that a text is compared with.
        text: what an image is compared with, by a CLIP; may be given several times.
        task: the task (default: the one that the model was made for).
        target: what to explain instead of what is predicted: a label, a word's tag as word=tag, an
            answer, a token, one of `text`.
        method: with commas between, the one to be shown first ahead: integrated-gradients,
            occlusion, shapley, gradient-x-input; attention-rollout, which is no proof.
        baseline: what stands for a part that is gone: auto, mask, mean or zero.
        orders: drawn by chance, beside which the explanation is put.
        shuffles: of all weights, with which scores must change; 0 leaves it out.
        seed: of what is drawn by chance, and of a drawing.
        no_maps: leave out what explains each word about an image by cells of its own.
        lens: show what the network would say after each of its blocks.
        patch: another text, of as many tokens: show how much of the answer comes back as single
            states and heads of this one stand in its pass.
        probe: read the labels of a file's rows (tokens and tags, or text and label) off each layer
            by linear probes, beside a control task.
        out: the page to write, .html.
        overwrite: replace a file of the same name.
        precision: of the network that is asked: fp32, bf16, int8 or int4.
        as_json: print one JSON object.

    Example:
        bedstone explain runs/finetune-sst2 "a lovely evening" --out why.html
        bedstone explain scenes-clip image.png --text "a red circle" --text "a blue square"
        bedstone explain scenes-vlm image.png --question "what colour is the circle?"

    Raises:
        BedstoneError: the model, the input or an option can't be used.
    """
    page = None if out is None else new_file(out, "--out", overwrite=overwrite)
    if page is not None and page.suffix.lower() != ".html":
        raise BedstoneError(f"--out: {page} was given; expected a name that ends in .html.")
    if probe:
        _check_probe(
            {
                "question": question, "context": context, "text_pair": text_pair, "text": text,
                "task": task, "target": target, "method": method, "baseline": baseline,
                "orders": orders, "shuffles": shuffles, "no_maps": no_maps, "lens": lens,
                "patch": patch, "precision": precision,
            }
        )  # fmt: skip
        return _probe(model, input, page, seed, as_json)
    from bedstone.inspect.explain import explain

    given = inputs(input, question, context, text_pair, text)
    found = explain(
        model,
        given,
        task=task,
        target=target,
        methods=[each.strip() for each in method.split(",")],
        baseline=baseline,
        precision=precision,
        orders=orders,
        shuffles=shuffles,
        maps=not no_maps,
        lens=lens,
        patch=patch,
        seed=seed,
    )
    if page is not None:
        found.save(page)
    if as_json:
        print(json.dumps(found.record()))
    else:
        _show(found)
        if page is not None:
            print(f"page: {page}")
    return int(not found.holds)


def _probe(model: str, rows: str, page: Path | None, seed: int, as_json: bool) -> int:
    """Probes each layer by the rows of a file."""
    from bedstone.data.open import open_dataset
    from bedstone.inspect.probes import probe
    from bedstone.report.explanation_page import write_explanation_page

    data = open_dataset(rows, option="", as_written=True)
    pairs = (("tokens", "tags"), ("text", "label"))
    columns = [[data.column(part) for part in pair] for pair in pairs]
    known = next((pair for pair in columns if None not in pair), None)
    if known is None:
        raise BedstoneError(f"{rows}: expected columns of tokens and tags, or of text and label.")
    texts, labels = ([row[column] for row in data.rows] for column in known)
    found = probe(model, texts, labels, seed=seed)
    panel = found.panel()
    if page is not None:
        write_explanation_page(page, "What can be read off each layer", f"{model}, {rows}", [panel])
    if as_json:
        print(json.dumps(found.record()))
        return 0
    (head, *lines) = panel.tables["Layers"]
    table = Table(*head, caption=f"commonest label alone: {found.majority:.3f}")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    return 0


def inputs(
    given: str,
    question: str | None,
    context: str | None,
    text_pair: str | None,
    texts: tuple[str, ...],
) -> Any:
    """An input of the command line as `explain` takes it.

    Raises:
        BedstoneError: the image isn't there, or an option leaves the input without a meaning.
    """
    path = Path(given) if len(given) < 1000 else None
    image = path if path is not None and path.suffix.lower() in IMAGE_SUFFIXES else None
    named: dict[str, Any] = {"question": question, "context": context, "text_pair": text_pair}
    more = {name: value for name, value in named.items() if value is not None}
    if image is not None:
        if not image.is_file():
            raise BedstoneError(f"{given}: no such file.")
        return {"image": str(image), **more} | ({"text": list(texts)} if texts else {})
    if texts:
        raise BedstoneError(
            "--text: is what an image is compared with, and the input is no image's file. Compare "
            "texts by --text-pair."
        )
    if question is not None and context is not None:
        raise BedstoneError(
            "--context: the input is the question or the context, and both are given beside it. "
            "Leave one of --question and --context out."
        )
    if not more:
        return given
    own = "context" if question is not None else "question" if context is not None else "text"
    return {own: given, **more}


def _check_probe(options: dict[str, Any]) -> None:
    """Raises BedstoneError for options that probing has no use for."""
    usual = inspect.signature(explain_).parameters
    for name, value in options.items():
        if value != usual[name].default:
            raise BedstoneError(
                f"--{name.replace('_', '-')}: --probe has no use for it; it reads the rows of a "
                "file. Leave one of them out."
            )


def _show(found: Any) -> None:
    """Prints each view: its parts, and how its methods did."""
    console = Console()
    for view in found.views:
        console.print(Text(f"{view.target.family}: {view.target.number}", style="bold"))
        console.print(
            f"{view.full:.4g} with the input, {view.empty:.4g} with nothing left "
            f"({view.target.baseline})",
            markup=False,
        )
        methods = {name: one.attribution for name, one in view.results.items()}
        table = Table("part", *methods)
        main = view.main.attribution.scores
        order = sorted(range(len(main)), key=lambda at: -abs(main[at]))[:12]
        for at in order:
            row = [f"{one.scores[at]:+.3g}" for one in methods.values()]
            table.add_row(Text(view.target.parts[at].name), *row)
        console.print(table)
        for name, one in view.results.items():
            proof = "" if one.attribution.proof else ", which is no proof"
            if one.failures:
                console.print(Text(f"✗ {name}{proof}: {'; '.join(one.failures)}", style="red"))
            else:
                console.print(Text(f"✓ {name}{proof}: holds", style="green"))
        if view.shuffled:
            mean = sum(view.shuffled) / len(view.shuffled)
            console.print(f"rank correlation with shuffled weights: {mean:.2f}")
    if (agreement := found.agreement) is not None:
        console.print(
            f"{agreement.precision} and its fp32 twin: rank correlation of occlusion "
            f"{agreement.correlation:.3f}"
        )
