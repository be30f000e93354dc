"""Small random models that put pictures into words, as the tests of their tasks use them."""

from bedstone.checkpoints.model import Model
from bedstone.data.images.image_text import train_image_text
from bedstone.data.images.processor import blip_processor
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import build_blip
from bedstone.models.flamingo import network as flamingo
from bedstone.models.flamingo.network import FlamingoConfig
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.vit.network import ViTConfig
from networks import randomise

SIZE = 32
TEXTS = [
    "a red circle left of a blue square",
    "how many green stars are there?",
    "two yellow triangles, what colour is the large one?",
    "yes no one two three red green blue yellow",
]


def told_model(
    kind: str = "joint", layout: str = "blip", context: int = 24, seed: int = 3
) -> Model:
    known = train_image_text(TEXTS * 3, 160)
    image = {"image_size": SIZE, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}
    if layout == "blip":
        image = {"image_size": SIZE, "patch": 8, "width": 24, "layers": 2, "heads": 4}
    text = {"vocab_size": known.vocab_size, "context": context, "width": 24, "layers": 2}
    text |= {"heads": 4, "bos_id": known.bos_id, "eos_id": known.sep_id, "pad_id": known.pad_id}
    shape = {"layout": layout, "image": image, "text": text, "embed": 12, "head": {"kind": kind}}
    network = build_blip(blip_config(shape), seed=1)
    if seed is not None:
        randomise(network, seed=seed)
    return Model(network.eval(), known, processor=blip_processor(SIZE))


def sighted_model() -> Model:
    known = train_bpe([*TEXTS * 3, "Question: what? Answer: Caption:"], 320)
    gpt = GPTConfig(
        vocab_size=known.vocab_size, width=24, layers=2, heads=4, context=64, kv_heads=2
    )
    image = ViTConfig(
        image_size=SIZE, patch=8, width=24, layers=2, heads=4, head=HeadConfig("states")
    )
    network = flamingo.build_flamingo(FlamingoConfig(gpt=gpt, image=image), seed=1)
    randomise(network, seed=3)
    return Model(network.eval(), known, processor=blip_processor(SIZE))
