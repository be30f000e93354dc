"""Decoding one sequence: Bedstone beside `transformers` generate, in one process.

    python bench/decode.py [--rounds 7] [--new 128] [--threads 2] [--static] [--small]
        [--write]

A network of SmolLM-135M's shape (Llama layout, 134M parameters) with random weights; prompt of
128 tokens, 128 new ones, greedy, batch 1, 2 threads. Contestants take turns, so that what else
the machine does meets all of them; medians and ranges are over rounds, and so are ratios, each
taken within its round. Quality: how many tokens equal those of fp32, and how often the
likeliest next token is the same when both read the same text.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bedstone.generation.autoregress import stream
from bedstone.generation.sampling import Sampling
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.published import layout, to_published
from bedstone.nn.fast.inference import for_inference
from result import Side, add_write, write

SHAPE = GPTConfig(
    layout="llama",
    vocab_size=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    hidden=1536,
    context=2048,
    norm_eps=1e-5,
)
SMALL = GPTConfig(layout="llama", vocab_size=512, width=64, layers=2, heads=4, kv_heads=2)


@dataclass
class Contestant:
    """One way to generate: `run` gives ids and the time, in seconds, at which each was there."""

    name: str
    run: Callable[[int], tuple[list[int], list[float]]]
    logits: Callable[[torch.Tensor], torch.Tensor]  # of a whole text (1, T) to (1, T, V)
    first: list[float] = field(default_factory=list)  # seconds to the first token
    rate: list[float] = field(default_factory=list)  # tokens a second after it
    ids: list[int] = field(default_factory=list)


def networks(config: GPTConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and theirs with the same random weights.

    They are drawn so that tokens vary and yet rounding to bf16 seldom changes the likeliest.
    """
    ours = build(config, seed=0).eval()
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if weight.dim() > 1:
                scale = 0.3 if "out." in name or "down." in name else 1.0
                weight.normal_(std=scale * weight.shape[1] ** -0.5)
        ours.embed.weight.normal_(std=0.05)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    theirs.load_state_dict(to_published(layout("llama"), ours), strict=False)
    return ours, theirs


class Clock:
    """A streamer of transformers: notes when each token comes; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def bedstone(name: str, network: torch.nn.Module, prompt: list[int]) -> Contestant:
    def run(count: int) -> tuple[list[int], list[float]]:
        start = time.perf_counter()
        ids, times = [], []
        for step in stream(network, [prompt], Sampling(max_tokens=count)):
            times.append(time.perf_counter() - start)
            ids.append(step.token)
        return ids, times

    return Contestant(name, run, network)


def peer(name: str, network: torch.nn.Module, prompt: list[int], **options) -> Contestant:
    ids = torch.tensor([prompt])

    def run(count: int) -> tuple[list[int], list[float]]:
        clock, start = Clock(), time.perf_counter()
        with torch.inference_mode():
            out = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                pad_token_id=0,
                streamer=clock,
                **options,
            )
        return out[0, len(prompt) :].tolist(), [at - start for at in clock.times[1:]]

    return Contestant(name, run, lambda text: network(text).logits)


def spread(values: list[float], form: str = ".1f") -> str:
    """Median (least to most)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def report(contestants: list[Contestant], prompt: list[int]) -> None:
    exact = contestants[0]
    text = torch.tensor([prompt + exact.ids])
    with torch.inference_mode():
        expected = exact.logits(text)[0, len(prompt) - 1 : -1].argmax(-1)
    print(f"\n{len(set(exact.ids))} different tokens among {len(exact.ids)} of {exact.name}")
    for each in contestants:
        same = statistics.mean(a == b for a, b in zip(each.ids, exact.ids, strict=True))
        with torch.inference_mode():
            likeliest = each.logits(text)[0, len(prompt) - 1 : -1].argmax(-1)
        forced = (likeliest == expected).float().mean().item()
        print(
            f"{each.name:28} {spread(each.rate)} tok/s, first token "
            f"{spread([1e3 * value for value in each.first], '.0f')} ms, as {exact.name}: "
            f"{same:.2f} of tokens, {forced:.2f} on the same text"
        )


def ratios(pairs: list[tuple[Contestant, Contestant]]) -> None:
    for ours, theirs in pairs:
        rate = [a / b for a, b in zip(ours.rate, theirs.rate, strict=True)]
        first = [b / a for a, b in zip(ours.first, theirs.first, strict=True)]
        same = statistics.mean(a == b for a, b in zip(ours.ids, theirs.ids, strict=True))
        print(
            f"{ours.name} / {theirs.name}: decode {spread(rate, '.2f')}x, first token "
            f"{spread(first, '.2f')}x, equal tokens {same:.2f}"
        )


def keep(folder: Path, contestants: list[Contestant], count: int, **settings: int) -> None:
    """The raw result: seconds of the `count` tokens after the first of each round."""
    exact = contestants[0]
    sides = {}
    for each in contestants:
        same = statistics.mean(a == b for a, b in zip(each.ids, exact.ids, strict=True))
        quality = {"equal": same, "seconds to the first token": each.first}
        sides[each.name] = Side([count / rate for rate in each.rate], count, quality)
    write(folder, "decode", "tokens", sides, **settings)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--new", type=int, default=128)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--static", action="store_true", help="the peer compiled, static cache")
    options.add_argument("--small", action="store_true", help="a tiny network: does it run?")
    add_write(options)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)

    config = SMALL if chosen.small else SHAPE
    ours, theirs = networks(config)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(config.vocab_size, (chosen.prompt,), generator=generator).tolist()
    theirs_bf16 = copy.deepcopy(theirs).to(torch.bfloat16)
    contestants = [
        peer("transformers fp32", theirs, prompt),
        bedstone("bedstone fp32", for_inference(ours, torch.float32), prompt),
        peer("transformers bf16", theirs_bf16, prompt),
        bedstone("bedstone bf16", for_inference(ours, torch.bfloat16), prompt),
    ]
    if chosen.static:
        static = {"cache_implementation": "static"}
        network = copy.deepcopy(theirs_bf16)
        network.forward = torch.compile(network.forward)
        contestants.append(peer("transformers bf16 compiled", network, prompt, **static))

    for each in contestants:
        start = time.perf_counter()
        each.run(chosen.new)  # warms up, and compiles
        print(f"{each.name}: warmed up in {time.perf_counter() - start:.1f} s", flush=True)
    for number in range(chosen.rounds):
        for each in contestants[number % 2 :] + contestants[: number % 2]:
            each.ids, times = each.run(chosen.new)
            each.first.append(times[0])
            each.rate.append((len(times) - 1) / (times[-1] - times[0]))
        print(
            f"round {number + 1}: "
            + ", ".join(f"{each.name} {each.rate[-1]:.1f}" for each in contestants),
            flush=True,
        )
    report(contestants, prompt)
    fp32, our_fp32, bf16, our_bf16, *rest = contestants
    pairs = [(our_fp32, fp32), (our_bf16, fp32), (our_bf16, bf16), (our_bf16, our_fp32)]
    ratios(pairs + [(our_bf16, each) for each in rest])
    if chosen.write:
        keep(chosen.write, contestants, chosen.new - 1, prompt=chosen.prompt)


if __name__ == "__main__":
    main()
