"""`bedstone index` and `bedstone search`: an index of images, searched by text or by image."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.bulk.on_ray import place_of
from bedstone.bulk.places import Job, Place, Spread, Worker, in_order
from bedstone.bulk.shares import WHOLE, Shard, fingerprint
from bedstone.checkpoints.load import open_model
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.outputs import new_file
from bedstone.report.pages import Tile, write_image_page
from bedstone.tasks.image_text.image_text_matching import rerank as read_together
from bedstone.tasks.pipeline import pipeline
from bedstone.tasks.search.fill import (
    BATCH,
    Embedding,
    Embeds,
    Filled,
    Source,
    embed_images,
    fill,
    open_source,
)
from bedstone.tasks.search.index import NAME, Found, Index, IndexSettings, default_place, shown
from bedstone.tasks.search.nearest import FEWEST

PREVIEW = 20  # broken items that are named
SHARE = "share.json"  # in an index of a share, what it is of
HERE = Spread()
GROWN = 1.2  # of the rows measured: from here on the approximate index is built again


def index(
    folder: str,
    model: str | None = None,
    out: str | None = None,
    metadata: str | None = None,
    spread: Spread = HERE,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> Filled:
    """Embed images into an index; a second run embeds only new and changed images.

    Args:
        folder: a folder of images, or a file of rows (Parquet, Arrow, JSONL, CSV) that hold images.
        model: a folder, a name that `bedstone models` lists, or a hub id (default for an existing
            index: its own model).
        out: the index to write (default: FOLDER.index).
        metadata: rows with a column file_name, instead of the folder's metadata.jsonl or .csv.
        as_json: print the stored keys, one JSON object per batch.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone index photos --model runs/clip-scenes

    Raises:
        BedstoneError: there is no image or no model, or the index is of another source.
    """
    spread.check()
    if spread.shard is not None and out is None:
        raise BedstoneError("--shard: needs --out, an index of its own.")
    path = Path(out) if out else default_place(folder)
    source = open_source(folder, metadata)
    place = model or _remembered(path)
    embedder = open_embedder(place, precision, device)
    with open_for(path, embedder, source, place) as held, place_of(spread) as at:
        elsewhere = _embedding(at, place, precision, device) if spread.on != "here" else None
        (path / SHARE).unlink(missing_ok=True)
        done = fill_index(
            held, embedder, source, as_json=as_json, elsewhere=elsewhere, share=spread.share
        )
        if spread.shard is not None:
            keys = [item.key for item in source.items()]
            of = {"shard": spread.shard, "inputs": len(keys), "of": fingerprint(keys, BATCH)}
            write_json(path / SHARE, {**of, "rows": len(held)})
    if as_json:
        print(json.dumps({"done": vars(done), "rows": len(held), "index": str(path)}))
        return done
    for fault in list(done.broken.values())[:PREVIEW]:
        print(f"skipped {fault}", file=sys.stderr)
    if len(done.broken) > PREVIEW:
        print(f"skipped {len(done.broken) - PREVIEW:,} more; --json names all", file=sys.stderr)
    print(f"{path}: {len(held):,} pictures; {done.summary()}")
    return done


def open_for(path: Path, embedder: Embeds, source: Source, model: str) -> Index:
    """The index at `path`, new or of this source and model.

    Raises:
        BedstoneError: it holds another source that is still there, or is another model's.
    """
    held = Index.create(path, embedder.width, embedder.name, model=_whole(model))
    before = held.settings.source
    if before and before != source.place and Path(before).exists():
        raise BedstoneError(
            f"{path}: is the index of {before}. Name another with --out, or pictures that it "
            "doesn't have would leave it."
        )
    if (before, held.settings.model) != (source.place, _whole(model)):
        held.moved(source=source.place, model=_whole(model))
    return held


def open_images(model: str, precision: str, device: str) -> Worker:
    """A model that sees as work on images, whose results are vectors.

    Raises:
        BedstoneError: as `open_embedder` does.
    """
    embedder = open_embedder(model, precision, device)
    return lambda images: embed_images(embedder, images)


def _embedding(place: Place, model: str, precision: str, device: str) -> Embedding:
    """Embeds batches in some place."""
    settings = {"model": model, "precision": precision, "device": device}
    job = Job("bedstone.commands.search:open_images", settings)
    return lambda batches: in_order(place.run(job, enumerate(batches)))


def fill_index(
    held: Index,
    embedder: Embeds,
    source: Source,
    *,
    as_json: bool = False,
    elsewhere: Embedding | None = None,
    share: Shard = WHOLE,
) -> Filled:
    """Fills an index and prints its progress; a large one also gets an approximate index.

    Args:
        elsewhere, share: as `fill` has them.
    """
    stored = 0

    def tell(keys: list[str]) -> None:
        nonlocal stored
        stored += len(keys)
        line = json.dumps({"stored": keys}) if as_json else f"stored {stored:,}"
        print(line, flush=True)

    done = fill(held, embedder, source, stored=tell, elsewhere=elsewhere, share=share)
    approximate(held, quiet=as_json)
    return done


def approximate(held: Index, *, quiet: bool = False) -> None:
    """Builds the approximate index of one that is large, where it has none or has grown."""
    rows, how = len(held), held.settings.approximate
    if rows >= FEWEST and (how is None or not how.rows / GROWN < rows < how.rows * GROWN):
        how = held.approximate()
        if not quiet:
            print(how.summary())


def open_embedder(place: str, precision: str = "auto", device: str = "auto") -> Any:
    """An engine that embeds images and texts by a model.

    Raises:
        BedstoneError: the model can't be opened, or embeds no images.
    """
    from bedstone.runtime import pick_device
    from bedstone.tasks.images.engine import ImageEngine
    from bedstone.tasks.task import embeds_images as sees

    model = open_model(place, device=pick_device(device))
    if not sees(model):
        raise BedstoneError(
            f"{place}: is of layout {model.config.layout!r}, and sees no pictures. Name a CLIP."
        )
    return ImageEngine(model, precision)


def _remembered(path: Path) -> str:
    """The model that an index was made by."""
    if not (path / NAME).is_file():
        raise BedstoneError(f"{path}: a new index needs a model that sees: --model MODEL")
    return IndexSettings.read(path).model


def _whole(model: str) -> str:
    """A model's folder from anywhere; a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model


WIDE = 48  # characters of a cell
JUDGED, JUDGED_LEAST = 4, 32  # times as many as are shown are put in order, and no fewer
LEAST = 12  # that the first column of metadata is worth; --json has all


def search(
    index: str,
    text: list[str],
    image: str | None = None,
    *,
    where: str = "",
    count: int = 10,
    page: str | None = None,
    approximate: bool = False,
    rerank: str | None = None,
    overwrite: bool = False,
    as_json: bool = False,
    model: str | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> list[Found]:
    """Search an index of images by text or by an example image.

    Args:
        index: a folder that `bedstone index` wrote.
        text: the query.
        image: an example image to search by, instead of text.
        where: an SQL condition on the metadata, such as "price < 20 and colour = 'red'".
        count: maximum number of results.
        page: an HTML file to write the results into.
        approximate: search the approximate index, and print its measured recall.
        overwrite: replace a page of the same name.
        rerank: a model for image-text-matching that reranks the nearest images.
        model: the path of the index's model, if it was moved.
        as_json: print one JSON object per image.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone search photos.index "a red circle" --page found.html

    Raises:
        BedstoneError: there is no such index or column, the query can't be read, or the model is
            another than the index was made by.
    """
    path, words = index, " ".join(text) if text else None
    if (words is None) == (image is None):
        raise BedstoneError(
            "search: expected either words, or --image with a picture to find the like of."
        )
    if words is not None and not words.strip():
        raise BedstoneError("search: the words are empty. Say what to look for.")
    if page is not None:
        new_file(page, "--page", overwrite=overwrite)
    held = Index.open(path)
    if where:
        held.count(where)  # a wrong condition is told before a model is opened
    if count < 1:
        raise BedstoneError(f"--count {count}: expected 1 or more.")
    if rerank is not None and words is None:
        raise BedstoneError("--rerank: reads pictures with words; with --image there are none.")
    judge = None if rerank is None else open_judge(rerank, precision, device)
    embedder = open_embedder(model or held.settings.model, precision, device)
    return answer(
        Index.open(path, name=embedder.name),
        embedder.texts([words])[0] if words is not None else embedder.images([image])[0],
        words if words is not None else Path(str(image)),
        where=where,
        count=count,
        page=page,
        approximate=approximate,
        judge=judge,
        as_json=as_json,
    )


def open_judge(place: str, precision: str = "auto", device: str = "auto") -> Any:
    """A task that scores how well images match a text, by a model for image-text-matching.

    Raises:
        BedstoneError: the model can't be opened, or has no matching head.
    """
    return pipeline("image-text-matching", place, precision=precision, device=device)


def answer(
    held: Index,
    vector: np.ndarray,
    query: str | Path,
    *,
    where: str = "",
    count: int = 10,
    page: str | None = None,
    approximate: bool = False,
    judge: Any = None,
    as_json: bool = False,
) -> list[Found]:
    """Searches by a query's vector, prints the results and writes the page."""
    most = count if judge is None else max(JUDGED * count, JUDGED_LEAST)
    found = held.search(vector, most, where=where, exact=not approximate)
    how = _how(held, approximate, where)
    if judge is not None:
        how += f"; the {len(found)} nearest put in order by {Path(judge.model.path or '').name}"
        found = judged(judge, str(query), found, held)[:count]
    if as_json:
        for one in found:
            row = {"key": one.key, "score": one.score, **one.columns}
            print(json.dumps(row, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        console.print(
            _table(found, console.width) if found else Text("nothing was found", style="dim")
        )
        console.print(Text(how, style="dim"))
    if page is not None:
        tiles = _tiles(held, found)
        title = query if isinstance(query, str) else f"Like {query.name}"
        example = query if isinstance(query, Path) else None
        lead = f"{len(found)} of {len(held):,} pictures" + (f" where {where}" if where else "")
        write_image_page(page, title, f"{lead}; {how}.", tiles, example=example)
        if not as_json:
            print(f"page: {page}")
    return found


def judged(judge: Any, words: str, found: list[Found], held: Index) -> list[Found]:
    """Reranks images by the probability that they match a text; unreadable ones are last."""
    source = _source(held)
    if source is None:
        raise BedstoneError(
            f"--rerank: the pictures of the index are gone ({held.settings.source}); they are read "
            "again to be put in order. Leave it out."
        )
    matches = read_together(judge, words, [source.image(one.key) for one in found])
    chances = [-1.0 if each is None else each["score"] for each in matches]
    order = sorted(range(len(found)), key=lambda place: -chances[place])
    scores = [chance if match else 0.0 for chance, match in zip(chances, matches, strict=True)]
    return [replace(found[place], score=scores[place]) for place in order]


def _how(held: Index, approximate: bool, where: str) -> str:
    how = held.settings.approximate
    if not approximate:
        return "exact search"
    if how is None:
        return f"exact search: {len(held):,} rows are too few for an approximate index"
    return how.summary() + ("; measured without the condition" if where else "")


def _table(found: list[Found], width: int) -> Table:
    """A table of scores, keys, and as many metadata columns as fit the width."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("score", justify="right", no_wrap=True)
    longest = min(max(len(one.key) for one in found), max(width // 2, 8))
    table.add_column("picture", overflow="fold", min_width=longest)
    room = width - len("-0.000") - longest - 4
    names: list[str] = []
    for name in found[0].columns:
        cells = max(len(text) for text in [name, *(shown(one.columns[name]) for one in found)])
        cells = min(cells, WIDE)
        if cells and (cells <= room or (not names and room >= LEAST)):
            names.append(name)
            table.add_column(name, overflow="ellipsis", no_wrap=True, width=min(cells, room))
            room -= cells + 2
    for one in found:
        facts = [Text(shown(one.columns[name])) for name in names]
        table.add_row(f"{one.score:.3f}", Text(one.key), *facts)
    return table


def _tiles(held: Index, found: list[Found]) -> list[Tile]:
    source = _source(held)
    tiles = []
    for one in found:
        facts = {name: shown(value) for name, value in one.columns.items() if value is not None}
        tiles.append(Tile(source and source.image(one.key), one.key, f"{one.score:.3f}", facts))
    return tiles


def _source(held: Index) -> Any:
    """The source of the index; None where it no longer exists."""
    place = held.settings.source
    return open_source(place) if place and Path(place).exists() else None
