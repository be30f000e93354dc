"""What can be explained of networks that read or draw pictures.

A picture's parts are the cells of a grid; one that is gone has the mean colour of the picture. Of a
CLIP, a caption or an answer each word is explained by cells of its own, and words by themselves.
What draws is explained by the words of its prompt: how well it cleans its own drawing of noise.

Shapes: B rows, C channels, H and W of a picture in pixels, S states of a picture, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.data.images.contrastive import text_rows
from bedstone.data.images.image_text import question_text
from bedstone.data.text.encode import Input, read_texts, text_input
from bedstone.data.text.packing import pack
from bedstone.diffusion.denoiser import conditioned, denoiser
from bedstone.diffusion.process import add_noise
from bedstone.diffusion.sample import sample_many
from bedstone.errors import BedstoneError, nearest
from bedstone.inspect.attribution import Case
from bedstone.inspect.lens import DrawnLens, Lens, after_blocks, logit_lens
from bedstone.inspect.text_targets import (
    Part,
    Reading,
    Target,
    blank_of,
    embedded,
    framed_row,
    log_odds,
    read_words,
)
from bedstone.nn.masks import Both, Causal, Padding
from bedstone.tasks.media.generator import conditions
from bedstone.tasks.task import text_of

GRID = 8  # cells a side
PIXELS = 1 << 20  # of pictures that are read at a time
TIMES = (0.35, 0.5, 0.65, 0.8)  # of noise, from 0 to 1, at which a denoiser is read


@dataclass(frozen=True)
class Picture:
    """A picture as a network reads it, in cells.

    Attributes:
        pixels: (C, H, W) as the network reads them.
        blank: likewise, of the mean colour or of zeros.
        cells: (1, H, W) the number of each pixel's cell.
        parts: the cells.
        shown: (H, W, 3) uint8.
    """

    pixels: Tensor
    blank: Tensor
    cells: Tensor
    parts: tuple[Part, ...]
    shown: np.ndarray

    def case(self, network: Any, score: Callable[[Tensor], Tensor]) -> Case:
        """The case of a score of pixels (B, C, H, W)."""
        device = next(network.parameters()).device
        names = [part.name for part in self.parts]
        rows = max(1, min(64, PIXELS // self.pixels[0].numel()))
        values, blank, cells = (x.to(device) for x in (self.pixels, self.blank, self.cells))
        return Case(values, blank, cells, names, score, rows)


def cells_of(size: tuple[int, int], grid: int = GRID) -> tuple[np.ndarray, tuple[Part, ...]]:
    """The number of the cell of each pixel, (H, W), and the cells, row by row."""
    rows, columns = (np.linspace(0, side, min(grid, side) + 1).round().astype(int) for side in size)
    numbers = np.zeros(size, np.int64)
    parts: list[Part] = []
    for row, (top, bottom) in enumerate(pairwise(rows)):
        for column, (left, right) in enumerate(pairwise(columns)):
            numbers[top:bottom, left:right] = len(parts)
            box = (int(top), int(left), int(bottom), int(right))
            parts.append(Part(f"row {row + 1}, column {column + 1}", box=box))
    return numbers, tuple(parts)


def read_picture(engine: Any, image: Any, baseline: str) -> tuple[Picture, str]:
    """A picture in cells, and in words what stands where one is gone.

    Raises:
        BedstoneError: it can't be read, or there is no such baseline for pictures.
    """
    if baseline not in ("auto", "mean", "zero"):
        raise BedstoneError(
            f"--baseline: {baseline!r} isn't one for pictures{nearest(baseline, ('mean', 'zero'))}."
        )
    shown = engine.fitted(image)
    pixels = engine.processor.normalise(torch.from_numpy(shown.copy())[None])[0]
    blank = torch.zeros_like(pixels)
    said = "zeros of normalised pixels in the place of a cell"
    if baseline != "zero":
        blank = pixels.mean((1, 2), keepdim=True).expand_as(pixels).clone()
        said = "the picture's mean colour in the place of a cell"
    numbers, parts = cells_of(shown.shape[:2])
    return Picture(pixels, blank, torch.from_numpy(numbers)[None], parts, shown), said


def class_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of a picture's label."""
    image = value["image"] if isinstance(value, dict) else value
    picture, said = read_picture(task.engine, image, baseline)
    labels = task.model.config.head.labels
    best = task(image)[0]["label"]
    which = _number(wanted or best, labels, "the label")
    number = f"log-odds of the label {labels[which]!r}"

    def case(network: Any) -> Case:
        return picture.case(network, lambda pixels: log_odds(network(pixels), which).float())

    return Target(
        "image classification", number, said, best, picture.parts, case, picture=picture.shown
    )


def _number(wanted: str, names: Sequence[str], what: str) -> int:
    if wanted not in names:
        raise BedstoneError(f"--target: {what} {wanted!r} is unknown{nearest(wanted, names)}.")
    return list(names).index(wanted)


# A CLIP: a picture and a text, each by its own parts, and each word by cells.


def similarity_targets(task: Any, value: Any, wanted: str | None, baseline: str) -> list[Target]:
    """How well a picture and a text go together, by cells and by words; words by cells.

    With several texts it is the log-odds of one among them.
    """
    image, texts = _image_and_texts(value)
    picture, said = read_picture(task.engine, image, baseline)
    tokenizer, config = task.model.tokenizer, task.model.config
    rows = text_rows(tokenizer, texts, config)
    found = task(image, candidate_labels=list(texts), hypothesis_template="{}")
    best = found[0]["label"]
    which = _number(wanted or best, texts, "the text")
    blank, said_of_words = blank_of(tokenizer, "auto" if baseline == "auto" else baseline)
    reading = read_words(rows[which], [texts[which]], blank=blank)
    number = f"similarity to {texts[which]!r}, as the model scales it"
    if len(texts) > 1:
        number = f"log-odds of {texts[which]!r} among {len(texts)} texts"

    def vectors(network: Any, values: Tensor | None = None, kept: Any = None) -> Tensor:
        """Of the texts, (n, E), or of the chosen one with other embeddings, (B, E)."""
        if values is None:
            many = [network.text_features(pack([row])) for row in rows]
            return F.normalize(torch.cat(many).float(), dim=-1)
        with embedded(network.text.embed, values):
            one = network.text_features(pack([rows[which]] * len(values)))
        return F.normalize(one.float(), dim=-1)

    def margin(network: Any, seen: Tensor, own: Tensor) -> Tensor:
        """Of pictures' vectors (B or 1, E) with the chosen text's (B or 1, E), (B,)."""
        scale = float(network.scale)
        cosines = (seen * own).sum(-1) * scale
        if len(texts) == 1:
            return cosines
        with torch.no_grad():
            others = vectors(network)
        logits = seen @ others.T * scale
        logits = logits.expand(max(len(logits), len(cosines)), -1).clone()
        logits[:, which] = cosines
        return log_odds(logits, which)

    def seen_of(network: Any, pixels: Tensor) -> Tensor:
        return F.normalize(network.image_features(pixels).float(), dim=-1)

    def by_cells(network: Any) -> Case:
        with torch.no_grad():
            own = vectors(network)[which : which + 1]
        return picture.case(network, lambda pixels: margin(network, seen_of(network, pixels), own))

    def by_words(network: Any) -> Case:
        with torch.no_grad():
            pixels = picture.pixels[None].to(next(network.parameters()).device)
            seen = seen_of(network, pixels)
        return reading.case(
            network.text.embed, lambda values: margin(network, seen, vectors(network, values))
        )

    def of_word(word: int, network: Any) -> Case:
        """By cells: how much better the text fits than it would without the word."""
        words = reading.case(network.text.embed, lambda values: values)
        kept = torch.ones(1, len(words), device=words.values.device)
        kept[0, word] = 0
        with torch.no_grad():
            own = vectors(network)[which : which + 1]
            without = vectors(network, words.mixed(kept))

        def score(pixels: Tensor) -> Tensor:
            seen = seen_of(network, pixels)
            return (seen * (own - without)).sum(-1) * float(network.scale)

        return picture.case(network, score)

    maps = {
        _unlike(part.name, number): partial(of_word, number)
        for number, part in enumerate(reading.parts)
    }
    family = "picture and text"
    cells = Target(
        family, number, said, best, picture.parts, by_cells, picture=picture.shown, maps=maps
    )
    texts_shown = {"text": texts[which]}
    tokens = tuple(tokenizer.backend.id_to_token(one) or "" for one in rows[which].ids)
    words = Target(
        family, number, said_of_words, best, reading.parts, by_words, texts_shown, tokens=tokens
    )
    return [cells, words]


def _unlike(name: str, number: int) -> str:
    """A word's name that no other has."""
    return f"{number + 1}. {name}"


def _image_and_texts(value: Any) -> tuple[Any, tuple[str, ...]]:
    given = value if isinstance(value, dict) else {}
    texts = given.get("text") or given.get("candidate_labels")
    texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
    if "image" not in given or not texts:
        raise BedstoneError("input: expected a picture, and --text what it is compared with.")
    return given["image"], tuple(dict.fromkeys(text_of(each) for each in texts))


# Captions and answers: cells of the picture to each word, words of the question to the answer.


@dataclass(frozen=True)
class Written:
    """A text that a network writes over a picture: tokens `begun`, then `ids`.

    Attributes:
        question: ids of the question as it is framed; () of a caption.
        answers: places in `ids` that are scored.
    """

    begun: tuple[int, ...]
    ids: tuple[int, ...]
    question: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()

    @property
    def given(self) -> list[int]:
        """The tokens that the network reads as it writes."""
        return [*self.begun, *self.ids[:-1]]

    def score(
        self, network: Any, form: Any, memory: Tensor, embeds: Tensor | None = None
    ) -> Tensor:
        """The log-odds of the scored tokens, summed, (B,).

        Args:
            memory: states of pictures, (B, S, D).
            embeds: of the question's tokens, (B, T, D).
        """
        rows = len(memory)
        if not self.question:
            return self._of(network.writer(memory), rows, memory.device)
        if embeds is None:
            return self._answer(network, form, memory)
        with embedded(question_embedding(network), embeds):
            return self._answer(network, form, memory)

    def _answer(self, network: Any, form: Any, memory: Tensor) -> Tensor:
        rows = len(memory)
        reading = form.read(network, [self.question] * rows, memory)
        writer, _ = reading.part(range(rows))
        return self._of(writer, rows, memory.device)

    def _of(self, writer: Any, rows: int, device: torch.device) -> Tensor:
        given = torch.tensor(self.given, device=device).expand(rows, -1)
        states = writer.states(given)[:, len(self.begun) - 1 :]
        wanted = torch.tensor(self.ids, device=device)
        scored = list(self.scored or range(len(self.ids)))
        logits = writer.head(states[:, scored])
        return log_odds(logits, wanted[scored]).sum(-1).float()


def question_embedding(network: Any) -> Any:
    """The embedding that reads a question: an encoder's, or that of a GPT that sees."""
    encoder = getattr(network, "encoder", None)
    return network.gpt.embed if encoder is None else encoder.embed


def caption_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of a caption, and of each of its words, by cells."""
    image = value["image"] if isinstance(value, dict) else value
    picture, said = read_picture(task.engine, image, baseline)
    best = task(image)[0]["generated_text"]
    form = task.engine.form
    words = form.words
    text, ids = _fitting(form, text_of(wanted or best), words.context - len(words.begin) - 1)
    whole = Written(tuple(words.begin), (*ids, words.end))
    target = _by_cells(form, picture, said, whole, f"log-odds of the caption {text!r}", best)
    reading = _words_of(words.tokenizer, text, ids)
    maps = {}
    for number, part in enumerate(reading.parts):
        places = tuple(int(at) for at in np.flatnonzero(reading.owners == number))
        one = replace(whole, scored=places)
        maps[_unlike(part.name, number)] = partial(_cells_case, form, picture, one)

    def lens(network: Any) -> Lens:
        device = next(network.parameters()).device
        writer = network.writer(network.memory(picture.pixels[None].to(device)))
        given = torch.tensor([whole.given], device=device)
        stack = getattr(network, "decoder", None) or network.gpt
        return logit_lens(
            stack.stack, lambda: writer.head(writer.states(given))[0], words.tokenizer, whole.given
        )

    return replace(target, family="caption", maps=maps, lens=lens)


def _fitting(form: Any, text: str, room: int) -> tuple[str, list[int]]:
    """A text and its ids, without the words at its end that don't fit."""
    while len(ids := form.output([text])[0].tolist()) > room and " " in text:
        text = text.rsplit(" ", 1)[0]
    return text, ids[:room]


def answer_targets(task: Any, value: Any, wanted: str | None, baseline: str) -> list[Target]:
    """The log-odds of an answer, by cells of the picture and by words of the question."""
    if not isinstance(value, dict) or not value.get("question"):
        raise BedstoneError("input: expected a picture, and --question what is asked of it.")
    image, question = value["image"], text_of(value["question"])
    picture, said = read_picture(task.engine, image, baseline)
    best = task(image, question=question)[0]["answer"]
    text = text_of(wanted or best)
    form = task.engine.form
    framed = form.framed(form.question(question))
    ids = form.output([text])[0].tolist()
    begun = tuple(int(one) for one in form.prompt(framed))
    written = Written(begun, (*ids, form.words.end), tuple(framed))
    number = f"log-odds of the answer {text!r}"
    cells = _by_cells(form, picture, said, written, number, best)
    known = form.words.tokenizer
    try:
        shown, row = question, framed_row(known, question, framed)
    except BedstoneError:  # as a GPT reads it, with words around it
        shown = question_text(question)
        row = framed_row(known, shown, framed)
    blank, said_of_words = blank_of(known, baseline)
    reading = read_words(row, [shown], blank=blank)

    def by_words(network: Any) -> Case:
        with torch.no_grad():
            device = next(network.parameters()).device
            memory = network.memory(picture.pixels[None].to(device))

        def score(values: Tensor) -> Tensor:
            return written.score(network, form, memory.expand(len(values), -1, -1), values)

        return reading.case(question_embedding(network), score)

    tokens = tuple(known.backend.id_to_token(one) or "" for one in framed)
    words = Target(
        "answer",
        number,
        said_of_words,
        best,
        reading.parts,
        by_words,
        {"question": shown},
        tokens=tokens,
    )
    return [replace(cells, family="answer"), words]


def _by_cells(
    form: Any, picture: Picture, said: str, written: Written, number: str, best: str
) -> Target:
    case = partial(_cells_case, form, picture, written)
    return Target("", number, said, best, picture.parts, case, picture=picture.shown)


def _cells_case(form: Any, picture: Picture, written: Written, network: Any) -> Case:
    return picture.case(
        network, lambda pixels: written.score(network, form, network.memory(pixels))
    )


def _words_of(tokenizer: Any, text: str, ids: Sequence[int]) -> Reading:
    """A written text's words and their tokens."""
    for shown in (text, f" {text.strip()}"):  # the second as a GPT writes it
        own = read_texts(tokenizer, [shown])[0].cut(0, len(ids))
        if list(own.ids) == list(ids):
            size = len(ids)
            row = Input(own.ids, [0] * size, own.offsets, [0] * size, own.words)
            return read_words(row, [shown], blank="zero")
    raise BedstoneError(f"input: {text!r} is written in other tokens than it is read in.")


# Diffusion: words of a prompt, by how well the network cleans its own drawing.


def drawing_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """How well a denoiser that reads a prompt cleans its own drawing of it, by words.

    F is minus the squared error of the clean signal that it predicts, in percent of the signal's
    variance, the mean over times and noises that stay the same. Regions are measured: by how much
    the error of each place grows where a word is gone.
    """
    model, seed = task.model, 0
    if isinstance(value, dict):
        seed, value = int(value.get("seed", 0)), value.get("prompt")
    text = text_of(value, "the prompt")
    if model.signal.condition != "text":
        raise BedstoneError(f"input: the model draws {model.inputs()}, so no word is explained.")
    if wanted is not None:
        raise BedstoneError("--target: what draws is explained by its own drawing. Leave it out.")
    condition, null = conditions(model, [text])
    (clean,) = sample_many(
        model.network,
        model.process,
        model.target,
        model.sample_shape,
        model.sampling,
        [seed],
        condition=condition,
        null=null,
    )
    known = model.tokenizer
    row = text_input(known, text)
    blank, said = blank_of(known, baseline)
    reading = read_words(row, [text], blank=blank)
    picture = None
    if model.signal.kind == "image":
        picture = _shown(model, clean)
    errors = partial(_errors, model, reading, clean.float())

    def case(network: Any) -> Case:
        made = reading.case(network.text.embed, lambda x: -errors(network, x).flatten(1).mean(1))
        return replace(made, rows=max(1, 64 // len(TIMES)))

    def regions(network: Any) -> dict[str, np.ndarray]:
        own = case(network)
        kept = torch.cat((torch.ones(1, len(own)), 1 - torch.eye(len(own))))
        with torch.no_grad():
            values = own.mixed(kept.to(own.values.device)).split(own.rows)
            found = torch.cat([errors(network, part).mean(1) for part in values])  # (n + 1, *S)
        grown = (found[1:] - found[:1]).cpu().numpy()
        names = [_unlike(part.name, number) for number, part in enumerate(reading.parts)]
        return dict(zip(names, grown, strict=True))

    def lens(network: Any) -> DrawnLens:
        if len(network.denoiser.skips):
            raise BedstoneError("--lens: this denoiser has long skips, so it can't be left early.")
        seen = _after_blocks(model, network, reading, clean.float())
        shown = tuple(_shown(model, one) for one in seen)
        return DrawnLens(shown, tuple(float((one - seen[-1]).square().mean()) for one in seen))

    tokens = tuple(known.backend.id_to_token(one) or "" for one in row.ids)
    return Target(
        "drawing",
        f"minus the error in % with which the drawing of seed {seed} is cleaned of noise",
        said,
        f"a drawing of seed {seed}",
        reading.parts,
        case,
        {"prompt": text},
        picture,
        tokens,
        regions=regions if picture is not None else None,
        lens=lens if picture is not None else None,
    )


def _shown(model: Any, signal: Tensor) -> np.ndarray:
    """A sampled signal (1, C, *S) as a picture (h, w, 3)."""
    drawn = model.decode(signal)[0].clamp(-1, 1).expand(3, -1, -1)
    found: np.ndarray = ((drawn + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return found


def _errors(model: Any, reading: Reading, clean: Tensor, network: Any, values: Tensor) -> Tensor:
    """Squared errors in % of the variance, (B, C, *S), of embedded prompts (B, T, D)."""
    rows, count = len(values), len(TIMES)
    read = {
        name: value.repeat_interleave(count, 0)
        for name, value in _condition(network, reading, values).items()
    }
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(count, *clean.shape[1:], generator=random).to(values.device)
    x0 = clean.to(values.device)
    times = torch.tensor(TIMES, device=values.device)
    noisy = add_noise(model.process, x0.expand(count, *x0.shape[1:]), noise, times).float()
    moments = times.repeat(rows)
    ask = denoiser(conditioned(network.denoiser, read), model.process, model.target)
    repeats = (rows, *(1,) * (noisy.dim() - 1))
    predicted, _ = ask(noisy.repeat(repeats), moments)
    errors = (predicted - x0).square() * (100 / x0.var())
    return errors.unflatten(0, (rows, count)).mean(1)


def _condition(network: Any, reading: Reading, values: Tensor) -> dict[str, Tensor]:
    """What a denoiser reads of embedded prompts (B, T, D); unlike `read_condition` with a graph."""
    ids = reading.ids.to(values.device).expand(len(values), -1)
    keep = torch.ones_like(ids, dtype=torch.bool)
    causal = getattr(network.text, "causal", False)
    mask = Both(Causal(), Padding(keep)) if causal else Padding(keep)
    with embedded(network.text.embed, values):
        return {"memory": network.text.states(ids, mask=mask), "memory_keep": keep}


@torch.no_grad()
def _after_blocks(model: Any, network: Any, reading: Reading, clean: Tensor) -> list[Tensor]:
    """The clean signal (1, C, *S) predicted of half noise after each block."""
    own = reading.case(network.text.embed, lambda x: x)
    read = _condition(network, reading, own.values[None])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(own.values)
    t = torch.tensor([0.5], device=own.values.device)
    noisy = add_noise(model.process, clean.to(noise), noise, t).float()
    ask = denoiser(conditioned(network.denoiser, read), model.process, model.target)
    return after_blocks(network.denoiser.stack, lambda: ask(noisy, t)[0])
