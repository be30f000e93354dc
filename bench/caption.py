"""BLIP writes captions: Bedstone beside `transformers`, as it comes and in bf16, in one process.

    python bench/caption.py [--beams 3] [--batch 8] [--tokens 20] [--rounds 7] [--threads 2]
        [--write]

The shape is BLIP base: ViT-B/16 at 384 pixels, a decoder of 12 layers. The weights are random,
saved by `transformers` and opened by both, but for the last map to words: it is fitted (least
squares, on the peer's fp32 states) so that each picture has a caption of its own, every word with
the margin that trained networks have. Random words would be near ties, which any rounding turns.

Every contestant is handed the same pixels (B, 3, 384, 384) in fp32 and gives captions of `tokens`
tokens, greedily or by beams. They take turns; medians and ranges are over rounds, ratios are taken
within each. Seconds of the processor, which other programs on the machine hardly change, are told
beside those of the clock. Gate: every caption equal to the peer's in fp32, token for token.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipConfig, BlipForConditionalGeneration

import bedstone
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch
from bedstone.models.blip.network import Blip
from bedstone.nn.fast.inference import for_inference
from result import Side, add_write, write
from rounds import orders, spread

BOS, SEP = 30522, 102  # of the published vocabulary
SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
IMAGE = {**SHAPE, "image_size": 384, "patch_size": 16, "intermediate_size": 3072}
TEXT = {**SHAPE, "vocab_size": 30524, "intermediate_size": 3072, "encoder_hidden_size": 768}
TEXT |= {"bos_token_id": BOS, "sep_token_id": SEP, "eos_token_id": SEP, "pad_token_id": 0}
MARGIN = 14.0  # the logit of a caption's next word; of others, about 0 with deviation 0.5

Captions = list[list[int]]


@dataclass
class Contestant:
    """One way to caption pixels, and what it took in each round."""

    name: str
    write: Callable[[Tensor], Captions]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    captions: Captions = field(default_factory=list)

    def turn(self, pixels: Tensor) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        self.captions = self.write(pixels)
        self.seconds.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)


@torch.no_grad()
def published(folder: Path, pixels: Tensor, tokens: int) -> Captions:
    """Writes a BLIP that knows these pictures into a folder; gives the captions it is to write."""
    torch.manual_seed(0)
    config = BlipConfig(vision_config=IMAGE, text_config={**TEXT, "tie_word_embeddings": False})
    config.tie_word_embeddings = False
    peer = BlipForConditionalGeneration(config).eval()
    for part in peer.modules():  # larger than at first, so that states tell pictures apart
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.55 * part.in_features**-0.5)
    words = peer.text_decoder.cls.predictions
    nn.init.normal_(words.decoder.weight, std=0.02)
    wanted = torch.randint(1000, 30000, (len(pixels), tokens))
    begun = torch.cat((torch.full((len(pixels), 1), BOS), wanted[:, :-1]), 1)
    memory = peer.vision_model(pixel_values=pixels)[0]
    states = peer.text_decoder.bert(input_ids=begun, encoder_hidden_states=memory, is_decoder=True)[
        0
    ]
    states = words.transform(states).flatten(0, 1)  # (B T, D)
    used, places = wanted.unique(return_inverse=True)
    goal = MARGIN * F.one_hot(places.flatten(), len(used)).float()  # (B T, words)
    words.decoder.weight[used] = torch.linalg.lstsq(states, goal, driver="gelsd").solution.T
    words.decoder.bias.zero_()
    peer.save_pretrained(folder)
    return wanted.tolist()


def theirs(name: str, folder: Path, dtype: torch.dtype, tokens: int, beams: int) -> Contestant:
    network = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}

    def write(pixels: Tensor) -> Captions:
        found = network.generate(
            pixel_values=pixels.to(dtype), do_sample=False, num_beams=beams, **length
        )
        return found[:, 1:].tolist()  # after the token that begins

    return Contestant(name, write)


def ours(name: str, network: Blip, dtype: torch.dtype, tokens: int, beams: int) -> Contestant:
    ready = for_inference(network, dtype)
    begin = network.config.text.bos_id
    search = BeamSearch(beams=beams, max_tokens=tokens, min_tokens=tokens)

    def write(pixels: Tensor) -> Captions:
        writer = ready.writer(ready.memory(pixels))
        prompts = [[begin]] * len(pixels)
        if beams > 1:
            found = beam_search(writer, prompts, search, eos=[SEP])
            return [list(best[0].ids) for best in found]
        return [each.ids for each in generate(writer, prompts, Sampling(max_tokens=tokens))]

    return Contestant(name, write)


def report(sides: list[Contestant], wanted: Captions) -> None:
    truth = sides[0].captions
    count = len(truth)
    print(f"\n{'':24}{'captions/s':>24}{'processor s each':>26}{'equal captions':>16}")
    equal = {}
    for each in sides:
        rates = [count / seconds for seconds in each.seconds]
        work = [seconds / count for seconds in each.processor]
        equal[each.name] = sum(a == b for a, b in zip(each.captions, truth, strict=True))
        print(f"{each.name:24}{spread(rates, 2):>24}{spread(work, 2):>26}", end="")
        print(f"{equal[each.name]:>13}/{count}")
    known = sum(a == b for a, b in zip(truth, wanted, strict=True))
    print(f"\n{sides[0].name} wrote {known} of {count} captions as fitted")
    for mine in sides[2:]:
        for peer in sides[:2]:
            ratios = [b / a for a, b in zip(mine.seconds, peer.seconds, strict=True)]
            work = [b / a for a, b in zip(mine.processor, peer.processor, strict=True)]
            verdict = "equal captions" if equal[mine.name] == count else "NOT equal captions"
            print(
                f"{mine.name} / {peer.name}: {spread(ratios, 2)} times the captions a second, "
                f"{statistics.median(work):.2f} by the processor's time; {verdict}"
            )


def keep(folder: Path, sides: list[Contestant], **settings: int) -> None:
    """The raw result, with the share of captions that equal the peer's in fp32."""
    truth = sides[0].captions
    kept = {}
    for each in sides:
        equal = statistics.mean(a == b for a, b in zip(each.captions, truth, strict=True))
        quality = {"equal": equal, "processor": each.processor}
        kept[each.name] = Side(each.seconds, len(truth), quality)
    write(folder, "caption", "captions", kept, **settings)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--beams", type=int, default=1)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--tokens", type=int, default=20)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    add_write(options)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    # pictures with something to tell apart: smooth noise
    coarse = torch.randn(chosen.batch, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(coarse, IMAGE["image_size"], mode="bicubic")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        wanted = published(Path(folder), pixels, chosen.tokens)
        network = bedstone.load(folder).network
        how = (chosen.tokens, chosen.beams)
        sides = [
            theirs("transformers", Path(folder), torch.float32, *how),
            theirs("transformers bf16", Path(folder), torch.bfloat16, *how),
            ours("bedstone", network, torch.float32, *how),
            ours("bedstone bf16", network, torch.bfloat16, *how),
        ]
        for each in sides:
            each.write(pixels[:1])  # warms up
        for number, order in enumerate(orders(sides, chosen.rounds)):
            for each in order:
                each.turn(pixels)
            told = (f"{each.name} {len(pixels) / each.seconds[-1]:,.2f}" for each in sides)
            print(f"round {number + 1}: {', '.join(told)} captions/s", flush=True)
    report(sides, wanted)
    if chosen.write:
        keep(chosen.write, sides, beams=chosen.beams, batch=chosen.batch, length=chosen.tokens)


if __name__ == "__main__":
    main()
