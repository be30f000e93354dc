"""The command lines about finding pictures, as `cli.py` has the others: signatures and help.

Nothing heavy is imported before a command runs.
"""


def index_(
    folder: str,
    model: str | None = None,
    out: str | None = None,
    metadata: str | None = None,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Embed pictures and keep them to be searched; again, only what is new or changed.

    Args:
        folder: of pictures, or a file of rows (Parquet, Arrow, JSONL, CSV) that hold them.
        model: a folder or a hub id; an index that is there remembers its own.
        out: where the index is kept; FOLDER.index where not given.
        metadata: rows with a column file_name, instead of the folder's metadata.jsonl or .csv.
        json: print what is stored, each batch as one JSON object.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    from bedstone.commands.search import index

    index(folder, model, out, metadata, as_json=json, precision=precision, device=device)


def search_(
    index: str,
    text: list[str],
    image: str | None = None,
    where: str = "",
    count: int = 10,
    page: str | None = None,
    approximate: bool = False,
    rerank: str | None = None,
    model: str | None = None,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Find pictures of an index by words, or by a picture like them.

    Args:
        index: a folder that bedstone index made.
        text: what to look for.
        image: a picture to find the like of, instead of words.
        where: a condition on the metadata, such as "price < 20 and colour = 'red'".
        count: how many to find, at most.
        page: an HTML file to show them in.
        approximate: read a part of a large index, and say what share of the nearest that finds.
        rerank: a model for image-text-matching that puts the nearest in order.
        model: where the index's model is, if it was moved.
        json: print one JSON object a picture.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    from bedstone.commands.search import search

    search(
        index,
        " ".join(text) if text else None,
        image,
        where=where,
        count=count,
        page=page,
        approximate=approximate,
        rerank=rerank,
        as_json=json,
        model=model,
        precision=precision,
        device=device,
    )
