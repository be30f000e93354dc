"""Where a step of beam search goes, and its time beside `transformers`, in one process.

    python bench/beam_step.py [--beams 5] [--rows 32] [--tokens 30] [--vocabulary 6000]
        [--rounds 7] [--threads 1] [--small]

A GPT-2 of 4 layers of width 128 with random weights, opened by both; rows end at different lengths.
The contestants take turns; medians are over rounds, ratios are taken within each. Seconds are the
processor's, which other programs on the machine hardly change. The share of the network is the time
inside its calls. Gate: all tokens equal the peer's.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config

from bedstone.generation.beam import beam_search
from bedstone.generation.settings import BeamSearch
from bedstone.models.gpt.network import GPT, GPTConfig, build
from bedstone.models.published import layout, to_published

END, PAD = 7, 0


class Timed:
    """The network as generation takes it, and the seconds inside its calls."""

    def __init__(self, network: GPT) -> None:
        self.network, self.config, self.seconds = network, network.config, 0.0

    def new_cache(self, batch: int, capacity: int):
        return self.network.new_cache(batch, capacity)

    def states(self, ids, *, cache=None):
        return self._timed(self.network.states, ids, cache=cache)

    def head(self, states):
        return self._timed(self.network.head, states)

    def _timed(self, call, *values, **named):
        start = time.process_time()
        found = call(*values, **named)
        self.seconds += time.process_time() - start
        return found


def made(vocabulary: int) -> tuple[GPT, torch.nn.Module]:
    """A network and its twin; an end token is likely enough that rows end at their own lengths."""
    torch.manual_seed(0)
    shape = {"vocab_size": vocabulary, "width": 128, "layers": 4, "heads": 4, "hidden": 512}
    ours = build(GPTConfig(layout="gpt2", context=256, tied=False, **shape)).eval()
    with torch.no_grad():
        for weight in ours.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
        likely = ours.head.weight.norm(dim=1).mean() * 2
        ours.head.weight[END] *= likely / ours.head.weight[END].norm()
    how = layout("gpt2")
    config = dict(how.write_config(ours.config))
    config.pop("model_type")
    config |= {"bos_token_id": END, "eos_token_id": END}
    theirs = AutoModelForCausalLM.from_config(GPT2Config(**config)).eval()
    theirs.load_state_dict(to_published(how, ours), strict=False)
    theirs.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=END)
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("beams", 5), ("rows", 32), ("tokens", 30), ("vocabulary", 6000)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a quick check that it runs")
    how = parser.parse_args()
    if how.small:
        how.rows, how.tokens, how.vocabulary, how.rounds = 3, 5, 600, 1
    torch.set_num_threads(how.threads)
    ours, theirs = made(how.vocabulary)
    timed = Timed(ours)
    prompts = torch.randint(1, how.vocabulary, (how.rows, 8)).tolist()
    search = BeamSearch(how.beams, max_tokens=how.tokens, early_stopping=True)

    def mine() -> list[list[int]]:
        return [list(own[0].ids) for own in beam_search(timed, prompts, search, eos=[END])]

    def peer() -> list[list[int]]:
        ids = torch.tensor(prompts)
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=how.beams,
            max_new_tokens=how.tokens,
            early_stopping=True,
            do_sample=False,
        )
        rows = [row[8:] for row in found.tolist()]
        return [row[: row.index(END) + 1] if END in row else row for row in rows]

    texts, wanted = mine(), peer()
    assert texts == wanted, "the tokens differ from the peer's"
    taken: dict[str, list[float]] = {"bedstone": [], "network": [], "transformers": []}
    for _ in range(how.rounds):
        timed.seconds = 0.0
        for name, write in (("bedstone", mine), ("transformers", peer)):
            start = time.process_time()
            write()
            taken[name].append(time.process_time() - start)
        taken["network"].append(timed.seconds)
    steps = max(map(len, texts))
    for name, seconds in taken.items():
        each = 1000 * statistics.median(seconds) / steps
        print(f"{name:14}{each:8.2f} ms a step of {how.rows} rows (at first), {how.beams} beams")
    share = [a / b for a, b in zip(taken["network"], taken["bedstone"], strict=True)]
    ratio = [a / b for a, b in zip(taken["transformers"], taken["bedstone"], strict=True)]
    print(f"the network's share {statistics.median(share):.0%}; {statistics.median(ratio):.2f} x")
    print(f"lengths {min(map(len, texts))} to {steps}, mean {sum(map(len, texts)) / how.rows:.1f}")


if __name__ == "__main__":
    main()
