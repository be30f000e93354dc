"""`bedstone run` on pictures and words: questions, conversations, pages of captions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bedstone.commands.run_pictures import picture_files
from bedstone.data.illustrated import illustrated
from bedstone.errors import BedstoneError
from bedstone.inspect.caption_page import Captioned, Line, write_captions

ASK = ("visual-question-answering", "image-text-to-text")  # take --question
PAGES = {"image-to-text": "Pictures in words", **dict.fromkeys(ASK, "Questions about pictures")}


def asked(
    task: str, pictures: Sequence[str], questions: Sequence[str], file: str | None
) -> list[dict[str, Any]]:
    """Each question of each picture, those of a picture side by side; then the rows of a file.

    Raises:
        BedstoneError: there is a picture and no question, or the rows hold neither questions nor
            messages.
    """
    key = "question" if task == "visual-question-answering" else "text"
    names = picture_files(pictures)
    found = [{"image": name, key: text} for name in names for text in questions]
    if names and not questions:
        if key == "question":
            raise BedstoneError(
                f"{task}: nothing is asked of the pictures. Give --question, several times for "
                "several questions."
            )
        found = [{"image": name, "text": ""} for name in names]
    if file is None:
        if questions and not names:
            raise BedstoneError(
                f"{task}: there is a question and no picture. Give its file or a folder after the "
                "model, or rows with an image by --file."
            )
        return found
    rows = illustrated(file)
    for number, row in enumerate(rows.rows):
        if key == "text" and row.get("messages") is not None:
            held = {} if row["image"] is None else {"image": row["image"]}
            found.append({"messages": row["messages"], **held})
            continue
        own = row.get("question", row.get("text")) or list(questions)
        if not own:
            raise BedstoneError(
                f"{rows.where(number)}: has no question (column question); give one, or --question."
            )
        texts = own if isinstance(own, list | tuple) else [own]
        found += [{"image": row["image"], key: text} for text in texts]
    return found


class Page:
    """Results that become a page of pictures with what was said of them.

    Raises:
        BedstoneError: the task says nothing of pictures.
    """

    def __init__(self, task: str, path: str) -> None:
        if task not in PAGES:
            raise BedstoneError(f"--page: {task} makes none; {', '.join(PAGES)} do.")
        self.task, self.path = task, path
        self.pictures: list[Captioned] = []

    def add(self, value: Any, result: Any) -> None:
        """Notes a result; what is asked of the same picture next stands with it."""
        picture = value.get("image") if isinstance(value, dict) else value
        question = ""
        if isinstance(value, dict):
            question = str(value.get("question") or value.get("text") or "")
        lines = [replace(line, asked=question) for line in _lines(result)]
        last = self.pictures[-1] if self.pictures else None
        if last is not None and picture is not None and last.picture == picture:
            self.pictures[-1] = replace(last, lines=[*last.lines, *lines])
        else:
            name = str(picture) if isinstance(picture, str | Path) else f"{len(self.pictures) + 1}"
            self.pictures.append(Captioned(picture, name, lines))

    def write(self, model: str, left_out: Sequence[BedstoneError] = ()) -> Path:
        """Writes it, whole or not at all."""
        lead = f"{len(self.pictures):,} pictures, by {Path(model).name}"
        if left_out:
            lead += f"; {len(left_out):,} can't be read: " + "; ".join(map(str, left_out[:5]))
            lead += " ..." if len(left_out) > 5 else ""
        return write_captions(self.path, PAGES[self.task], lead + ".", self.pictures)


def _lines(result: Any) -> Iterator[Line]:
    """Of answers the best alone; of captions all."""
    for one in result[:1] if result and "answer" in result[0] else result:
        said = one.get("answer", one.get("generated_text"))
        if isinstance(said, list):  # messages: the last is the answer
            said = said[-1]["content"]
        yield Line(said, score=f"{one['score']:.2f}" if "score" in one else "")
