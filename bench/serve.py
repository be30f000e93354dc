"""Requests at once beside the same requests one after another, over HTTP, of one served model.

    python bench/serve.py [--model MODEL] [--precision int8] [--requests 16] [--prompt 128]
        [--new 64] [--rounds 3] [--threads 2]

Each request is a greedy completion of a piece of a text, of so many tokens, through
`/v1/completions` of a server on the loopback interface; no end token is among what is written, so
all have the same length. Prompts differ and no prefix is kept. Both ways take turns in each round;
rates are tokens generated a second of the whole, prompts included in the time. The texts of both
ways are compared: they have to be equal to the last byte.
"""

import argparse
import http.client
import json
import threading
import time
from typing import Any

import torch

from bedstone.serve.app import listen, server_of
from bedstone.serve.gate import entrance_of
from bedstone.serve.models import Models, ServeSettings
from result import ROOT
from rounds import spread


def started(chosen: argparse.Namespace) -> tuple[Models, Any, int]:
    """A server in a thread, and its port."""
    settings = ServeSettings(
        max_num_seqs=chosen.requests, max_model_len=chosen.prompt + chosen.new + 16,
        prefix_memory=0.0, kv_memory=8.0,
    )  # fmt: skip
    models = Models({"model": chosen.model}, settings, chosen.precision, "cpu")
    models.open_all()
    limits: dict[str, Any] = {"body": 1 << 24, "seconds": 30.0, "requests": 1000}
    listener = listen("127.0.0.1", 0)
    server = server_of(models, entrance_of("127.0.0.1", {}, (), **limits))
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return models, server, listener.getsockname()[1]


def ask(port: int, prompt: list[int], new: int) -> tuple[str, int]:
    """A completion's text and the number of its tokens."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"model": "model", "prompt": prompt, "max_tokens": new, "temperature": 0}
    line.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(line.getresponse().read())
    line.close()
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def together(port: int, prompts: list[list[int]], new: int) -> list[tuple[str, int]]:
    found: list[Any] = [None] * len(prompts)

    def one(number: int) -> None:
        found[number] = ask(port, prompts[number], new)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    began = time.perf_counter()
    models, server, port = started(chosen)
    print(f"ready after {time.perf_counter() - began:.1f} s", flush=True)
    served = models.entries["model"].served
    assert served is not None
    assert served.model.tokenizer is not None
    served.model.generation["eos_token_id"] = []  # texts of one length
    ids = served.model.tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"))
    ids *= 1 + (chosen.requests * 16 + chosen.prompt) // len(ids)
    prompts = [ids[16 * n : 16 * n + chosen.prompt] for n in range(chosen.requests)]
    ask(port, prompts[0], 4)
    rates: dict[str, list[float]] = {"one after another": [], "at once": []}
    texts = []
    for number in range(chosen.rounds):
        for name in list(rates)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            if name == "at once":
                found = together(port, prompts, chosen.new)
            else:
                found = [ask(port, prompt, chosen.new) for prompt in prompts]
            taken = time.perf_counter() - began
            rates[name].append(sum(count for _, count in found) / taken)
            texts.append([text for text, _ in found])
        said = ", ".join(f"{name} {each[-1]:.1f}" for name, each in rates.items())
        print(f"  round {number + 1}: {said} tokens a second", flush=True)
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    for name, each in rates.items():
        print(f"{name}: {spread(each, 1)} tokens a second")
    print(f"at once: {spread(ratios, 2)} times as many")
    print("texts are equal" if all(each == texts[0] for each in texts) else "texts differ")
    server.should_exit = True
    models.close()


if __name__ == "__main__":
    main()
