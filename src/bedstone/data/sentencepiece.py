"""A SentencePiece `tokenizer.model` -> the same tokenizer as a `tokenizers` object.

For byte-pair models with byte fallback as published with Llama 2: the model's scores give the
order of the merges (the rule of Kudo and Richardson, 2018, https://arxiv.org/abs/1808.06226), and
a space is set before every text. What was converted is compared with the original on probes, so a
model of another kind is refused rather than tokenised wrongly.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from bedstone.errors import BedstoneError

SPACE = "▁"

_PROBES = (
    "Hello, world",
    "  two spaces and a\ttab\nand lines\n\n\nof 1234 numbers",
    "Grüße, 東京 και 🙂 \u200d \x07",
    "def f(x):\n        return x ** 2  # code",
    " ",
)


def convert_sentencepiece(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and its settings as `tokenizer_config.json` would hold them.

    Raises:
        BedstoneError: the extra is not installed, the file is damaged or not of this kind.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise BedstoneError(
            f"{path}: reading a SentencePiece model needs the extra 'sentencepiece'. "
            "Install it with: pip install 'bedstone[sentencepiece]'"
        ) from error
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(path.read_bytes())
        pieces = [model.IdToPiece(number) for number in range(model.GetPieceSize())]
    except (OSError, RuntimeError, ValueError) as error:
        raise BedstoneError(
            f"{path}: can't be read as a SentencePiece model ({error}). Fetch the file again."
        ) from error
    for prefix in (True, False):
        tokenizer = _build(model, pieces, prefix)
        if all(
            tokenizer.encode(probe, add_special_tokens=False).ids == model.EncodeAsIds(probe)
            for probe in _PROBES
        ):
            return _with_start(tokenizer, model), _settings(model)
    raise BedstoneError(
        f"{path}: is a SentencePiece model of a kind that can't be converted exactly; expected "
        "byte-pair encoding without a normaliser, as in Llama 2. Put the model's tokenizer.json "
        "beside it: that is read first."
    )


def _build(model: Any, pieces: list[str], prefix: bool) -> Tokenizer:
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    unknown = pieces[model.unk_id()]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(model, pieces, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(model.IsByte(number) for number in range(len(pieces))),
        )
    )
    space = normalizers.Replace(" ", SPACE)
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), space])
    else:
        tokenizer.normalizer = space
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, normalized=False, special=True)
            for number, piece in enumerate(pieces)
            if model.IsControl(number) or model.IsUnknown(number)
        ]
    )
    return tokenizer


def _merges(model: Any, pieces: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the best-scored piece first."""
    found = []
    for number, piece in enumerate(pieces):
        if model.IsControl(number) or model.IsUnknown(number) or model.IsByte(number):
            continue
        score = model.GetScore(number)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _with_start(tokenizer: Tokenizer, model: Any) -> Tokenizer:
    if model.bos_id() >= 0:
        start = model.IdToPiece(model.bos_id())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A",
            pair=f"{start} $A {start}:1 $B:1",
            special_tokens=[(start, model.bos_id())],
        )
    return tokenizer


def _settings(model: Any) -> dict[str, Any]:
    names = {
        "bos_token": model.bos_id(),
        "eos_token": model.eos_id(),
        "unk_token": model.unk_id(),
        "pad_token": model.pad_id(),
    }
    return {name: model.IdToPiece(number) for name, number in names.items() if number >= 0}
