"""image-text-to-text: answers to messages with an image, or texts that continue a prompt.

Messages are read as in training: what the last user says is the question, and it stands for
itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.messages import PLACEHOLDER, turn
from bedstone.errors import BedstoneError
from bedstone.tasks.image_text.engine import (
    ImageTextGenerationOptions,
    ImageTextTask,
    answers,
    generates,
)
from bedstone.tasks.image_text.image_to_text import Captioned, ImageToText
from bedstone.tasks.image_text.visual_question_answering import Question, VisualQuestionAnswering
from bedstone.tasks.images.engine import LabelledQuery, is_image
from bedstone.tasks.task import shown


@dataclass(frozen=True)
class ChatOptions(ImageTextGenerationOptions):
    """Options of image-text-to-text.

    Attributes:
        return_full_text: give the messages with the answer after them, or the text with what goes
            on from it; otherwise what is new alone.
        truncation: cut a question that is too long, and say so.
    """

    return_full_text: bool = True
    truncation: bool | str | None = None


@dataclass(frozen=True)
class Reply(LabelledQuery):
    """An image, the conversation, and the question or caption prompt that the network reads.

    Attributes:
        given: the messages, or the text.
        asks: a question or a caption's beginning, as the task for it has it.
    """

    given: Any = None
    asks: Question | Captioned = field(default_factory=lambda: Captioned(None))


class ImageTextToText(ImageTextTask):
    """Messages with an image -> [{"input_text", "generated_text"}].

    A network for answers takes the user's last words as its question; one for captions goes on
    from them. Where nothing is said beside the image it is described.
    """

    name = "image-text-to-text"
    asks = "a network that answers questions about pictures, or describes them"
    settings = ChatOptions
    keys = ("image", "images", "text", "messages")

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        engine = self.engine
        self.caption = ImageToText(model, engine=engine) if generates(model) else None
        self.answer = VisualQuestionAnswering(model, engine=engine) if answers(model) else None

    @classmethod
    def fits(cls, model: Model) -> bool:
        return generates(model) or answers(model)

    def __call__(self, inputs: Any = None, text: Any = None, **options: Any) -> Any:
        """The answer to messages, or to a text with an image.

        Args:
            inputs: or `images`: an image, with `text`; messages, or a list of conversations.
            text: with an image, what is said of it, in which `<image>` may say where the image
                stands; with a list of images, a list as long. Without: the messages.
        """
        for name in ("images", "image"):
            if inputs is None and name in options:
                inputs = options.pop(name)
        if inputs is None:
            inputs, text = text, None
        if text is not None:
            inputs = self._paired(inputs, text)
        return super().__call__(inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or _is_conversation(inputs)

    def prepare(self, value: Any, options: ChatOptions) -> Reply:
        if isinstance(value, dict) and not value.keys() <= set(self.keys):
            raise BedstoneError(
                f"the keys are {', '.join(map(str, value))}; expected images, and messages or text."
            )
        given, question, images, places = _read(value)
        if places and places != len(images):
            raise BedstoneError(
                f"has {places:,} places for a picture ({PLACEHOLDER}, or parts of type image), and "
                f"{len(images):,} pictures were given. Their number must match."
            )
        if len(images) != 1:
            raise BedstoneError(
                f"{len(images):,} pictures were given; the network reads one. "
                + ("Leave the others out." if images else "Give one, as images or in a message.")
            )
        if isinstance(given, list) and any(turn(one, "message")[0] != "user" for one in given):
            self.tell(
                "the network reads each question by itself: what a system, an assistant or the "
                "user said before isn't told to it.",
                once="alone",
            )
        row: dict[str, Any] = {"image": images[0]}
        asks: Question | Captioned
        if self.answer is not None and question:
            asks = self.answer.prepare({**row, "question": question}, self._asking(options))
        elif self.caption is not None:
            asks = self.caption.prepare({**row, "prompt": question}, self._captioning(options))
        else:
            raise BedstoneError(
                "nothing is asked; the network answers questions. Say what you would know of the "
                "picture."
            )
        return Reply(asks.image, given=given, asks=asks)

    def say(
        self, memory: Tensor, rows: Sequence[Sequence[Any]], options: ChatOptions
    ) -> list[list[Any]]:
        results: list[list[Any]] = [[None] * len(own) for own in rows]
        for kind in (Question, Captioned):
            chosen = [[at for at, row in enumerate(own) if type(row.asks) is kind] for own in rows]
            places = [place for place, own in enumerate(chosen) if own]
            if not places:
                continue
            queries = [[rows[place][at].asks for at in chosen[place]] for place in places]
            found = self._said(kind, memory[places], queries, options)
            for place, own in zip(places, found, strict=True):
                for at, one in zip(chosen[place], own, strict=True):
                    results[place][at] = one
        return results

    def finish(self, row: Any, output: Any, options: ChatOptions) -> list[dict[str, Any]]:
        given = row.given
        found = []
        for text, wholeness in output:
            whole: Any = text
            if options.return_full_text and isinstance(given, list):
                whole = [*given, {"role": "assistant", "content": text}]
            elif options.return_full_text and isinstance(row.asks, Question):
                whole = f"{given} {text}"
            found.append({"input_text": given, "generated_text": whole, **wholeness})
        return found

    def _said(
        self, kind: Any, memory: Tensor, queries: list[list[Any]], options: ChatOptions
    ) -> list[list[list[tuple[str, dict[str, bool]]]]]:
        """The texts of each row, best first, and whether they are whole, where a form is given."""

        def parts(one: dict[str, Any]) -> tuple[str, dict[str, bool]]:
            return one[key], {name: one[name] for name in ("complete",) if name in one}

        if kind is Question:
            assert self.answer is not None
            key, results = "answer", self.answer.say(memory, queries, self._asking(options))
        else:
            assert self.caption is not None
            key = "generated_text"
            results = self.caption.say(memory, queries, self._captioning(options))
        return [[[parts(one) for one in row] for row in own] for own in results]

    def _asking(self, options: ChatOptions) -> Any:
        assert self.answer is not None
        several = options.generation().num_return_sequences or 1
        return replace(self.answer.options, top_k=several, **_writing(options))

    def _captioning(self, options: ChatOptions) -> Any:
        assert self.caption is not None
        return replace(self.caption.options, **_writing(options))

    def _paired(self, images: Any, text: Any) -> Any:
        if isinstance(text, str):
            several = isinstance(images, list | tuple)
            return {"images": list(images) if several else [images], "text": text}
        if not isinstance(text, list | tuple) or _is_conversation(text):
            raise BedstoneError(
                f"{self.name}: text: {shown(text)} was given beside pictures; messages hold their "
                "pictures themselves, as parts {'type': 'image', 'image': ...}."
            )
        if not isinstance(images, list | tuple) or len(images) != len(text):
            count = len(images) if isinstance(images, list | tuple) else 1
            raise BedstoneError(
                f"{self.name}: {count:,} pictures and {len(text):,} texts were given; expected as "
                "many."
            )
        return [{"image": one, "text": words} for one, words in zip(images, text, strict=True)]


def _writing(options: ChatOptions) -> dict[str, Any]:
    """Options of chat as those of the task that answers."""
    return {
        "generate_kwargs": options.generation().given,
        "truncation": options.truncation,
        "batch_size": options.batch_size,
    }


def _is_conversation(value: Any) -> bool:
    some = isinstance(value, list | tuple) and bool(value)
    return some and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)


def _read(value: Any) -> tuple[Any, str, list[Any], int]:
    """What was given, the user's last words, the images, and how many places they have."""
    if is_image(value) and not isinstance(value, str):
        return "", "", [value], 0
    own: list[Any] = []
    given = value
    if isinstance(value, dict):
        given = value.get("messages", value.get("text") or "")
        held = value.get("images", value.get("image"))
        own = list(held) if isinstance(held, list | tuple) else [] if held is None else [held]
    if isinstance(given, str):
        return (
            given,
            " ".join(given.replace(PLACEHOLDER, " ").split()),
            own,
            given.count(PLACEHOLDER),
        )
    if not _is_conversation(given):
        raise BedstoneError(
            f"{shown(given)} was given; expected messages ({{'role': ..., 'content': ...}}), or a "
            "text with a picture."
        )
    places, question, role = 0, "", ""
    for number, message in enumerate(given, 1):
        role, text, more, images = turn(message, f"message {number:,}")
        places, own = places + more, own + images
        if role == "assistant":
            question = ""
        elif role == "user":
            question = f"{question} {text}".strip()
    if role != "user":
        raise BedstoneError(
            f"message {len(given):,}: is the {role}'s, and what is answered is the user's last "
            "words. Leave it out."
        )
    for number, image in enumerate(own):
        if not is_image(image):
            raise BedstoneError(f"picture {number + 1:,}: {shown(image)} is none.")
    return list(given), question, own, places
