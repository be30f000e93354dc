"""The command line about moderation, as `cli.py` has the others: a signature and its help.

Nothing heavy is imported before a command runs.
"""


def calibrate_(
    policy: str,
    model: str,
    sample: str,
    out: str | None = None,
    method: str = "platt",
    wished_precision: float | None = None,
    wished_recall: float | None = None,
    clean: list[str] = [],  # noqa: B006, a signature is the command line
    held_out: float = 0.5,
    most: int = 0,
    column: str | None = None,
    label: str | None = None,
    picture: str | None = None,
    seed: int = 0,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Fit a moderation policy to a labelled sample: probabilities, thresholds, their figures.

    Args:
        policy: a YAML file; recipes/moderation-policy.yaml is one to begin with.
        model: a folder or a hub id.
        sample: rows with a text, an image or both, and a label: categories of the policy.
        out: the policy to write; NAME.calibrated.yaml beside it where not given.
        method: platt, isotonic, or direction, which learns categories anew from the sample.
        wished_precision: what thresholds are to reach; the best F1 where nothing is wished.
        wished_recall: the same of recall.
        clean: a label of rows that are of no category; may be given several times.
        held_out: the share of the sample that is measured on.
        most: rows taken of the sample, at most.
        column: of the text, where it isn't called text.
        label: the column of the label, where it isn't called label.
        picture: a PNG to draw precision and recall by threshold into.
        seed: of what is taken.
        json: print one JSON object.
        precision: of the model's products: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    from bedstone.commands.calibrate import CalibrationOptions as Wishes
    from bedstone.commands.calibrate import calibrate

    wishes = Wishes(method, wished_precision, wished_recall, clean, held_out, most, seed)
    columns = {"text": column, "label": label}
    calibrate(
        policy,
        model,
        sample,
        wishes,
        columns={part: name for part, name in columns.items() if name},
        out=out,
        picture=picture,
        as_json=json,
        precision=precision,
        device=device,
    )
