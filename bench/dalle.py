"""DALL-E: what re-ranking is worth, and how fast codes are written.

    python bench/dalle.py accuracy --model RUN --judge FOLDER [--candidates 16] [--prompts 1000]
        [--seeds 0 1] [--guidance 3.0]
    python bench/dalle.py speed [--images 16] [--grid 16] [--threads N] [--rounds 5] [--write]
    python bench/dalle.py classes --model RUN... --judge FILE [--samples 1000] [--steps 8]
    python bench/dalle.py orders RUN RUN RUN --judge FOLDER [--prompts 1000]

`accuracy`: prompts of scenes whose combinations of shape and colour training never showed, judged
by `bench/scene_judge.py`'s network. `right/n` is of the candidate that the CLIP keeps of the first
n, `oracle/n` of the best of them, `random/n` of any; intervals are Wilson's, of 95 %.

`speed`: greedy codes of random weights with guidance (two rows an image), by Bedstone and by
`transformers.generate` with a static cache on the same network; logits and ids are compared first.

`classes`: how often a judge of labelled images sees the class whose name a prompt has, by the
first of the recipe's templates; with passes of the network and processor milliseconds an image.

`orders`: accuracy, passes of the network and processor seconds an image, of models
that write in different orders.
"""

import argparse
import copy
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.checkpoints.dalle import DallePipeline
from bedstone.checkpoints.load import open_model
from bedstone.data.signals.open import held_out_prompts
from bedstone.evaluate.dalle import rerank_figures
from bedstone.evaluate.judges import class_accuracy, open_judge
from bedstone.evaluate.scene_judge import open_scene_judge
from bedstone.generation.autoregress import ready
from bedstone.generation.codes import CodeSampling, guided, passes_of, write_codes
from bedstone.models.dalle.network import Dalle, DalleConfig, build
from bedstone.models.published import layout, to_published
from bedstone.runtime import Precision, pick_device, pick_precision
from result import Side, add_write, interval, write

GUIDANCE = 3.0


def opened(path: str) -> DallePipeline:
    model = open_model(path)
    assert isinstance(model, DallePipeline), f"{path} is no DALL-E"
    return model


def accuracy(options: argparse.Namespace) -> None:
    model, judge = opened(options.model), open_scene_judge(options.judge)
    how = pick_precision("auto", pick_device("cpu"))
    given = {"guidance": options.guidance, "temperature": options.temperature}
    said = {name: value for name, value in given.items() if value is not None}
    model.sampling = replace(model.sampling, **said)
    prompts = [one.text for one in held_out_prompts(options.prompts, objects=(1, 2))]
    print(f"{model.how}; {len(prompts)} prompts, judged by {options.judge}")
    for seed in options.seeds:
        start = time.process_time()
        found = rerank_figures(model, how, judge, prompts, options.candidates, seed=seed * 10**6)
        taken = time.process_time() - start
        count = len(prompts) * options.candidates
        print(f"seed {seed}: {count} images, {taken / count * 1e3:.1f} ms of processor each")
        for name, value in found.values.items():
            interval = found.intervals.get(name)
            print(f"  {name:20} {value:.3f}" + (f"  ({interval[0]:.3f}-{interval[1]:.3f})"
                                                if interval else ""))  # fmt: skip


# Speed.


class PeerRotary(nn.Module):
    """Bedstone's positions, in the place of the peer's."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.source(position_ids)
        return cos[:, 0].to(x.dtype), sin[:, 0].to(x.dtype)


def peer_of(network: Dalle) -> Any:
    """The same network as a Qwen3 of transformers, whose logits are of codes alone."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    core, kind = network.core, layout("qwen3")
    values = kind.write_config(core.config)
    config = Qwen3Config(**{k: v for k, v in values.items() if k != "architectures"})
    peer = Qwen3ForCausalLM(config).eval()
    tensors = to_published(kind, core)
    tensors = {f"model.{name.removeprefix('model.')}": each for name, each in tensors.items()}
    missing, unexpected = peer.load_state_dict(tensors, strict=False)
    assert set(missing) == {"lm_head.weight"} and not unexpected, (missing, unexpected)
    peer.lm_head = network.head
    peer.model.rotary_emb = PeerRotary(core.rotary)
    peer.generation_config.eos_token_id = peer.generation_config.pad_token_id = None
    return peer


def speed(options: argparse.Namespace) -> None:
    from transformers import LogitsProcessor, LogitsProcessorList

    torch.set_num_threads(options.threads)
    side = options.grid
    shape = {"width": options.width, "layers": options.layers, "heads": options.width // 64}
    config = DalleConfig(codes=1000, grid=(side, side), vocab_size=256, text_tokens=24, **shape)
    network = build(config, seed=0).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 1.5 * weight.shape[1] ** -0.5)
    ids = torch.arange(options.images * 12).view(options.images, 12) * 7 % 256
    keep = torch.ones_like(ids, dtype=torch.bool)
    text, null = network.tokens(ids, keep), network.tokens(ids[:1], ~keep[:1])
    both = torch.cat((text, null.expand_as(text)))
    peer, places = peer_of(network), config.places

    class Guided(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            one, other = scores.chunk(2)
            return guided(one, other, GUIDANCE).repeat(2, 1)

    def theirs(peer: Any = peer) -> Tensor:
        found = peer.generate(
            both,
            attention_mask=torch.ones_like(both),
            max_new_tokens=places,
            do_sample=False,
            cache_implementation="static",
            logits_processor=LogitsProcessorList([Guided()]),
        )
        return found[: options.images, -places:]

    with torch.inference_mode():
        codes = torch.arange(places)[None].repeat(2, 1) * 31 % 1000
        apart = (
            network(ids[:2], keep[:2], codes)
            - (peer(torch.cat((text[:2], codes[:, :-1]), 1)).logits[:, text.shape[1] - 1 :])
        )
    print(f"largest difference of logits: {apart.abs().max():.1e}")
    how = CodeSampling(guidance=GUIDANCE, temperature=0.0)
    sides, found = {}, {}
    for name, dtype in (("bedstone fp32", torch.float32), ("bedstone bf16", torch.bfloat16)):
        decoder = ready(network, Precision(torch.device("cpu"), dtype))

        def ours(decoder: Any = decoder) -> Tensor:
            chances = [torch.Generator().manual_seed(0)] * options.images
            return write_codes(decoder, text, null, places, how, chances)

        sides[name] = ours
    sides["transformers"] = theirs
    rough = copy.deepcopy(peer).bfloat16()
    sides["transformers bf16"] = lambda: theirs(rough)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(options.rounds):
        for name, call in sides.items():
            start = time.process_time()
            found[name] = call()
            times[name].append(time.process_time() - start)
    same = (found["bedstone fp32"] == found["transformers"]).float().mean()
    print(f"equal greedy ids (fp32): {same:.4f} of {found['transformers'].numel()}")
    work = options.images * places
    made = {name: Side(each, work) for name, each in times.items()}
    for name, each in made.items():
        low = min(each.seconds)
        print(f"{name:20} {low:7.2f} s of processor, {work / low:8.0f} codes a second")
    for mine, other in (("fp32", "transformers"), ("bf16", "transformers bf16")):
        over = made[f"bedstone {mine}"].over(made[other])
        print(f"bedstone {mine} over {other}: {min(over):.2f}-{max(over):.2f}x")
    if options.write:
        write(options.write, "dalle", "codes", made, images=options.images, grid=side, **shape)


def passes(model: DallePipeline) -> int:
    """Of the network for an image."""
    places: int = model.config.places
    return passes_of(model.config, model.sampling) if model.masked else places


def classes(options: argparse.Namespace) -> None:
    judge = open_judge(options.judge)
    how = pick_precision("auto", pick_device("cpu"))
    for path in options.model:
        model = opened(path)
        given = {"guidance": options.guidance, "steps": options.steps}
        said = {name: value for name, value in given.items() if value is not None}
        model.sampling = replace(model.sampling, **said)
        template = model.record["recipe"]["data"]["templates"][0]
        numbers = torch.arange(options.samples) % len(judge.labels)
        prompts = [template.replace("{label}", judge.labels[number]) for number in numbers.tolist()]
        start = time.process_time()
        drawn = model.sample(
            range(options.samples),
            condition=model.prompts.condition(prompts),
            batch=250,
            **model.prepared(how),
        )
        taken = (time.process_time() - start) / options.samples
        found = class_accuracy(judge.logits(drawn), numbers)
        low, high = interval(round(found.accuracy * options.samples), options.samples)
        print(
            f"{path}: {model.how}: {options.samples} samples, {found.accuracy:.3f} "
            f"({low:.3f}-{high:.3f}), {passes(model)} passes, {taken * 1e3:.1f} ms of processor an "
            "image"
        )
        for label, share in zip(judge.labels, found.classes, strict=True):
            print(f"  {template.replace('{label}', label)}: {share:.3f}")


def orders(options: argparse.Namespace) -> None:
    judge = open_scene_judge(options.judge)
    how = pick_precision("auto", pick_device("cpu"))
    prompts = [one.text for one in held_out_prompts(options.prompts, objects=(1, 2))]
    for path in options.models:
        model = opened(path)
        start = time.process_time()
        found = rerank_figures(model, how, judge, prompts, 1)
        taken = (time.process_time() - start) / len(prompts)
        low, high = found.intervals["right/1"]
        print(
            f"{path}: {model.how}: right {found['right/1']:.3f} ({low:.3f}-{high:.3f}), "
            f"{passes(model)} passes, {taken * 1e3:.1f} ms of processor an image"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("accuracy")
    one.add_argument("--model", required=True)
    one.add_argument("--judge", required=True)
    one.add_argument("--candidates", type=int, default=16)
    one.add_argument("--prompts", type=int, default=1000)
    one.add_argument("--seeds", type=int, nargs="+", default=[0])
    one.add_argument("--guidance", type=float)
    one.add_argument("--temperature", type=float)
    two = kinds.add_parser("speed")
    for name, value in {"images": 16, "grid": 16, "width": 192, "layers": 6, "rounds": 5}.items():
        two.add_argument(f"--{name}", type=int, default=value)
    two.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_write(two)
    four = kinds.add_parser("classes")
    four.add_argument("--model", required=True, nargs="+")
    four.add_argument("--judge", required=True)
    four.add_argument("--guidance", type=float)
    four.add_argument("--steps", type=int)
    four.add_argument("--samples", type=int, default=1000)
    three = kinds.add_parser("orders")
    three.add_argument("models", nargs="+")
    three.add_argument("--judge", required=True)
    three.add_argument("--prompts", type=int, default=1000)
    options = parser.parse_args()
    kinds_of = {"accuracy": accuracy, "speed": speed, "classes": classes, "orders": orders}
    kinds_of[options.kind](options)


if __name__ == "__main__":
    main()
