"""Small random models that put pictures into words, as the tests of their tasks use them."""

from picture_models import pictures as pictures

from bedstone.checkpoints.artefact import Model
from bedstone.data.image_processor import blip_processor
from bedstone.data.told_text import train_told
from bedstone.models.vlm import build, vlm_config
from networks import randomise

SIZE = 32
TEXTS = [
    "a red circle left of a blue square",
    "how many green stars are there?",
    "two yellow triangles, what colour is the large one?",
    "yes no one two three red green blue yellow",
]


def told_model(kind: str = "joint", layout: str = "blip", context: int = 24, seed: int = 3) -> Model:
    known = train_told(TEXTS * 3, 160)
    image = {"image_size": SIZE, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}
    if layout == "blip":
        image = {"image_size": SIZE, "patch": 8, "width": 24, "layers": 2, "heads": 4}
    text = {"vocab_size": known.vocab_size, "context": context, "width": 24, "layers": 2}
    text |= {"heads": 4, "bos_id": known.bos_id, "eos_id": known.sep_id, "pad_id": known.pad_id}
    shape = {"layout": layout, "image": image, "text": text, "embed": 12, "head": {"kind": kind}}
    network = build(vlm_config(shape), seed=1)
    randomise(network, seed=seed)
    return Model(network.eval(), known, processor=blip_processor(SIZE))
