"""The signature of `bedstone run`."""

from bedstone.commands.run import Inputs as Given
from bedstone.commands.run import run


def run_(
    task: str,
    model: str,
    text: list[str],
    file: str | None = None,
    column: str | None = None,
    context: str | None = None,
    field: list[str] = [],  # noqa: B006, a signature is the command line
    option: list[str] = [],  # noqa: B006
    policy: str | None = None,
    question: list[str] = [],  # noqa: B006
    page: str | None = None,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Do a task with a model: fill-mask, question-answering, semantic-search and others.

    docs/tasks.md has one line for each task.

    Args:
        task: its name, as in version 4 of transformers.
        model: a folder or a hub id.
        text: what to read; of question-answering the questions, of semantic-search the queries, of
            sentence-similarity the source and what is compared with it; of pictures, their files
            or folders. `-` reads lines from standard input.
        file: read the lines of a text file, or rows (JSON, JSONL, CSV, Parquet, Arrow), instead;
            for semantic-search, what is searched.
        column: of rows, the column that holds the text.
        context: for question-answering, the text that holds the answers, or its file.
        field: for information-extraction, name=question; may be given several times.
        option: an option of the task, key=value; may be given several times.
        policy: for moderation, the policy's file.
        question: about each picture; may be given several times.
        page: an HTML file of the pictures with what was said of them.
        json: print one JSON object an input.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    given = Given(text, file, column, context, field, policy, question)
    run(task, model, given, option, as_json=json, page=page, precision=precision, device=device)
