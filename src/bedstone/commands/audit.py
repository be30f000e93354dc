"""`bedstone audit`: whether a model treats groups differently, with intervals and tests."""

from bedstone.outputs import new_file


def audit(
    model: str,
    checks: str = "words",
    page: str | None = None,
    keep: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
    precision: str = "fp32",
    device: str = "cpu",
) -> int:
    """Measure whether a model treats groups differently.

    Checks are named in a YAML file: preferences between pairs of sentences (CrowS-Pairs),
    associations of embeddings (WEAT, SEAT), what changes where a group in a text is exchanged,
    which words a decoder goes on with, error rates by group on labelled rows, how often generated
    texts or images show each value of an attribute, and who is found by neutral queries. Each
    figure has an interval, a test corrected for their number, and the difference that could have
    been seen. Checks that don't fit the model are named and left out.

    Args:
        model: a run, a published folder, or a name of `bedstone models`.
        checks: a YAML file of checks, or words: gender in words, which comes with Bedstone.
        page: an HTML file with all figures.
        keep: write it into the model's `bedstone.json` and its card.
        strict: exit with 1 where a measure differs from its aim.
        overwrite: replace a page of the same name.
        as_json: print one JSON object.

    Example:
        bedstone audit smollm2-135m-instruct
        bedstone audit runs/hiring --checks checks.yaml --page audit.html --keep

    Raises:
        BedstoneError: the checks or the model can't be read, or no check fits the model.
    """
    from bedstone.checkpoints.load import open_model
    from bedstone.inspect.audit import (
        keep_audit,
        present_audit,
        read_plan,
        run_audit,
        write_audit_page,
    )

    plan = read_plan(checks)
    if page is not None:
        new_file(page, "--page", overwrite=overwrite)
    opened = open_model(model, device=device)
    found = run_audit(opened, plan, precision=precision, quiet=as_json)
    present_audit(found, as_json=as_json)
    written = [] if page is None else [f"page: {write_audit_page(found, page)}"]
    if keep:
        written.append(f"kept: {keep_audit(found, opened)}")
    if not as_json:
        print(*written, sep="\n")
    return int(strict and bool(found.differing))
