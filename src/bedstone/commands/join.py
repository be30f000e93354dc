"""`bedstone join`: the outputs of all shares of some work as the output of the whole."""

from pathlib import Path

from bedstone.bulk.shares import WHOLE, Shard, Written, last_line, numbered, read_share
from bedstone.commands.search import SHARE, approximate
from bedstone.errors import BedstoneError
from bedstone.files import atomic_folder, write_text
from bedstone.outputs import new_file, new_folder
from bedstone.reading import check_kinds, read_object, to_path
from bedstone.tasks.search.index import Index

KINDS = {**dict.fromkeys(("shard", "of"), "text"), "inputs": "a whole number"}


Part = tuple[str, Shard, int, str]  # where it is, which of how many, of so many rows, of what


def join(out: str, shares: list[str], overwrite: bool = False) -> None:
    """Join the outputs of all shares that `--shard` made into the output of one run.

    Outputs of `bedstone run` become its output; results of `evaluate` and `imagine` a file that
    their --results takes; indexes one index.

    Args:
        out: the file to write; of indexes a folder.
        shares: the output of each share, in any order.
        overwrite: replace a file of the same name.

    Example:
        bedstone run ner MODEL --file rows.csv --json --shard 1/2 > one.jsonl
        bedstone run ner MODEL --file rows.csv --json --shard 2/2 > two.jsonl
        bedstone join all.jsonl one.jsonl two.jsonl

    Raises:
        BedstoneError: a share is missing, given twice, cut short, or of other work.
    """
    if all(Path(share).is_dir() for share in shares):
        join_indexes(new_folder(out, "OUT", overwrite=overwrite), shares)
        return
    path = new_file(out, "OUT", overwrite=overwrite)
    if any(Path(share).resolve() == path.resolve() for share in shares):
        raise BedstoneError(f"OUT: {out} is one of the shares. Name another file to write.")
    parts = [read_share(to_path(share)) for share in shares]
    first = parts[0]
    each = [f"{part.of} {part.block} {part.kind}" for part in parts]
    found = zip(shares, parts, each, strict=True)
    check_all(path, [(place, part.shard, part.inputs, of) for place, part, of in found])
    lines = {row: line for part in parts for row, line in part.lines.items()}
    text = "".join(lines[row] for row in sorted(lines))
    if first.kind == "results":
        written = Written()
        kept = [written.add(numbered(lines[row], row).rstrip("\n")) for row in sorted(lines)]
        work, block = first.of, first.block
        end = last_line(WHOLE, first.inputs, written, work, block=block, kind=first.kind)
        text = "".join(f"{line}\n" for line in [*kept, end])
    write_text(path, text)
    print(f"{path}: {len(lines):,} lines of {first.inputs:,} inputs, from {len(parts)} shares")


def check_all(path: Path, parts: list[Part]) -> None:
    """Raises BedstoneError unless all are shares of the same work, and each is there once."""
    for place, shard, rows, of in parts:
        if (shard.count, rows, of) != (parts[0][1].count, *parts[0][2:]):
            raise BedstoneError(
                f"{place}: is a share of other inputs, or of another model or options, than "
                f"{parts[0][0]}. Give the shares of one run."
            )
    found, count = sorted(shard.number for _, shard, _, _ in parts), parts[0][1].count
    if found != list(range(1, count + 1)):
        missing = ", ".join(map(str, sorted(set(range(1, count + 1)) - set(found))))
        what = f"{missing} of {count} missing" if missing else "one given twice"
        raise BedstoneError(f"{path}: shares: {what}. Give the output of each share once.")


def join_indexes(path: Path, shares: list[str]) -> None:
    """Joins indexes of shares into one, whole or not at all.

    Raises:
        BedstoneError: a share is missing, given twice, unfinished, or of another model or source.
    """
    parts: list[Part] = []
    for place in shares:
        if not (Path(place) / SHARE).is_file():
            raise BedstoneError(
                f"{place}: isn't a finished share of an index ({SHARE} is missing). Give what "
                "bedstone index --shard wrote."
            )
        held = read_object(Path(place) / SHARE)
        check_kinds(held, KINDS, Path(place) / SHARE)
        parts.append((place, Shard.read(held["shard"]), held["inputs"], held["of"]))
    check_all(path, parts)
    how = Index.open(shares[0]).settings
    indexes = [Index.open(place, name=how.name) for place in shares]
    with atomic_folder(path) as temporary:
        given = {"model": how.model, "source": how.source}
        with Index.create(temporary, how.width, how.name, **given) as whole:
            for one in indexes:
                whole.take_over(one)
            approximate(whole)
            count = len(whole)
    print(f"{path}: {count:,} rows, from {len(shares)} shares")
