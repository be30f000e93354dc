"""Small random models of each kind, as the tests of tasks use them."""

from pathlib import Path

from bedstone.checkpoints.model import Model
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe, train_roberta, train_wordpiece
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.gpt.network import build as build_gpt
from bedstone.models.heads import HeadConfig
from networks import randomise

SENTENCES = [
    "Zoë Müller flew from Paris to New York, didn't she?",
    "the unfriendly dogs barked at a small red cat.",
    "a film that is dull, slow and far too long",
    "nobody in Bremen expected such a lovely, unhurried evening!",
    "go",
]
TAGS = HeadConfig("tokens", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
NLI = HeadConfig("sequence", ("contradiction", "neutral", "entailment"))


def tokenizer(layout: str = "bert") -> Tokenizer:
    texts = [" ".join(SENTENCES)] * 3 + ["This example is sport, weather or film."]
    return train_roberta(texts, 420) if layout == "roberta" else train_wordpiece(texts, 160)


def model(head: HeadConfig, layout: str = "bert", context: int = 64, **changes) -> Model:
    known = tokenizer(layout)
    config = BertConfig(
        layout=layout,
        vocab_size=known.vocab_size,
        width=32,
        layers=2,
        heads=4,
        hidden=48,
        context=context,
        head=head,
        **changes,
    )
    network = build(config, seed=1)
    randomise(network, seed=3)
    return Model(network.eval(), known)


def decoder(head: HeadConfig, layout: str, context: int = 64, **changes) -> Model:
    known = train_bpe(SENTENCES * 3, 300)
    config = GPTConfig(
        layout=layout,
        vocab_size=known.vocab_size,
        width=32,
        layers=2,
        heads=4,
        context=context,
        head=head,
        **changes,
    )
    network = build_gpt(config, seed=1)
    randomise(network, seed=3)
    return Model(network.eval(), known)


def saved(folder: Path, *args, **changes) -> Path:
    """The folder of such a model."""
    path: Path = model(*args, **changes).save(folder / "model")
    return path
