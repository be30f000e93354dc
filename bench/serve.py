"""What a server does over HTTP on the loopback interface, part by part.

    python bench/serve.py [--part rate] [--model MODEL] [--precision int8] [--requests 16]
        [--prompt 128] [--new 64] [--rounds 3] [--threads 2] [--count 200] [--seconds 20]

`rate`: requests at once beside the same one after another; texts have to be equal to the last byte.
`company`: --count requests with seeds of their own, alone and among 1 to 31 others: text and
    log-probabilities have to be equal to the last bit.
`prefix`: prompts four fifths of which are the same text, with kept prefixes and without.
`overload`: for --seconds each, as many requests as slots, then 20 times as many a second as were
    done then: how many are done all the same, how soon the others are refused, and whether as many
    as asked again, as clients do, are done in the end.
`disconnects`: --count clients that leave at a random byte, of streams and others: slots, work,
    files, threads and Python's objects have to be as before, memory to 1 %.
`lookup`: greedy answers with the text itself as prediction, beside none; texts have to be equal.
`soak`: for --seconds, --requests clients that ask a decoder, text and image embeddings, questions
    about images and images to be drawn, of the models that come with Bedstone: times of each and
    the server's memory, by quarters.
`stop`: SIGTERM to `bedstone serve` while it answers streams: they end whole, and then it does.

Each request is a piece of a text, of so many tokens, through `/v1/completions`; no end token is
among what is written, so all have the same length. The server is a process of its own; both share
the processors.
"""

import argparse
import asyncio
import contextlib
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import torch

from bedstone.serve.openapi import PIXEL
from rounds import spread
from served_process import NAME, Answer, Running, post, read, text_of

PREFIX = 0.8  # of a prompt
TIMES = 20  # as many as can be done
WARM_UP = 500  # clients that leave before memory is first looked at


def rate(chosen: argparse.Namespace) -> bool:
    with Running(chosen) as running:
        prompts = [running.prompt(n, chosen.prompt) for n in range(chosen.requests)]

        async def together() -> list[Answer]:
            return list(await asyncio.gather(*(running.ask(p, chosen.new) for p in prompts)))

        async def apart() -> list[Answer]:
            return [await running.ask(p, chosen.new) for p in prompts]

        rates: dict[str, list[float]] = {"one after another": [], "at once": []}
        texts = []
        for number in range(chosen.rounds):
            for name in list(rates)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                found = asyncio.run(together() if name == "at once" else apart())
                taken = time.perf_counter() - began
                made = sum(read(each)["usage"]["completion_tokens"] for each in found)
                rates[name].append(made / taken)
                texts.append([text_of(each) for each in found])
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    for name, each in rates.items():
        print(f"{name}: {spread(each, 1)} tokens a second")
    print(f"at once: {spread(ratios, 2)} times as many")
    return _said("texts are equal", all(each == texts[0] for each in texts))


def company(chosen: argparse.Namespace) -> bool:
    chance = random.Random(1)
    with Running(chosen) as running:
        sizes = [chance.randint(8, chosen.prompt) for _ in range(chosen.count)]

        def ask(number: int) -> Any:
            prompt = running.prompt(number, sizes[number])
            return running.ask(prompt, chosen.new, seed=number, temperature=1, logprobs=3)

        async def alone() -> list[Any]:
            return [read(await ask(number))["choices"] for number in range(chosen.count)]

        async def among() -> tuple[dict[int, Any], list[int]]:
            order, groups, found = list(range(chosen.count)), [], {}
            chance.shuffle(order)
            while order:
                size = min(chance.randint(2, 32), len(order))
                group, order = order[:size], order[size:]
                answers = await asyncio.gather(*(ask(number) for number in group))
                groups.append(size)
                found |= {n: read(a)["choices"] for n, a in zip(group, answers, strict=True)}
            return found, groups

        began = time.perf_counter()
        first = asyncio.run(alone())
        middle = time.perf_counter()
        second, groups = asyncio.run(among())
        taken = time.perf_counter() - middle
    same = sum(first[number] == second[number] for number in range(chosen.count))
    print(f"{chosen.count} alone: {middle - began:.1f} s; among others, groups of {min(groups)} to "
          f"{max(groups)}: {taken:.1f} s")  # fmt: skip
    texts = sum(
        first[number][0]["text"] == second[number][0]["text"] for number in range(chosen.count)
    )
    print(f"{texts} of {chosen.count} texts are equal")
    return _said(f"{same} of {chosen.count} are equal to the last bit", same == chosen.count)


def prefix(chosen: argparse.Namespace) -> bool:
    seconds: dict[str, list[float]] = {"with kept prefixes": [], "without": []}
    texts: list[list[str]] = []
    shared = int(chosen.prompt * PREFIX)
    for number in range(chosen.rounds):
        for name in list(seconds)[:: 1 if number % 2 else -1]:
            memory = 0.0 if name == "without" else 0.5
            with Running(chosen, prefix_memory=memory) as running:
                beginning = running.prompt(0, shared)
                prompts = [
                    [*beginning, *running.prompt(9 + n, chosen.prompt - shared)]
                    for n in range(chosen.requests)
                ]

                async def apart(prompts: Any = prompts, running: Any = running) -> list[Answer]:
                    return [await running.ask(each, chosen.new) for each in prompts]

                began = time.perf_counter()
                found = asyncio.run(apart())
                seconds[name].append(time.perf_counter() - began)
                texts.append([text_of(each) for each in found])
                if memory:
                    said = [
                        read(each)["usage"]["prompt_tokens_details"]["cached_tokens"]
                        for each in found
                    ]
                    hits = running.said("counts")["prefix_hits"]
    for name, each in seconds.items():
        print(f"{name}: {spread(each, 2)} s for {chosen.requests} requests")
    faster = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"{spread(faster, 2)} times as fast; tokens known, as answers say: {said[0]}, then "
          f"{min(said[1:])} to {max(said[1:])} of {chosen.prompt}; counted: "
          f"{hits:,}, their sum {sum(said):,}")  # fmt: skip
    return _said("texts are equal", all(each == texts[0] for each in texts))


def overload(chosen: argparse.Namespace) -> bool:
    with Running(chosen, max_queue=chosen.requests) as running:
        memory = [running.said("held")[0]]

        async def busy(until: float) -> int:
            done = 0
            while time.perf_counter() < until:
                answer = await running.ask(running.prompt(done, chosen.prompt), chosen.new)
                done += answer[0] == 200
            return done

        async def full(clients: int) -> float:
            began = time.perf_counter()
            counts = await asyncio.gather(*(busy(began + chosen.seconds) for _ in range(clients)))
            return sum(counts) / (time.perf_counter() - began)

        async def flood(pace: float) -> tuple[list[Answer], float]:
            began, waiting = time.perf_counter(), []
            while (now := time.perf_counter() - began) < chosen.seconds:
                while len(waiting) < pace * now:
                    prompt = running.prompt(len(waiting), chosen.prompt)
                    waiting.append(asyncio.ensure_future(running.ask(prompt, chosen.new)))
                await asyncio.sleep(0.002)
            answers = list(await asyncio.gather(*waiting))
            return answers, time.perf_counter() - began

        async def patient(number: int) -> int:
            """Tries of a client that comes again as it is told to."""
            for tries in range(1, 100):
                found = await running.ask(running.prompt(number, chosen.prompt), chosen.new)
                if found[0] == 200:
                    return tries
                await asyncio.sleep(float(found[1]["retry-after"]) * random.uniform(0.8, 1.2))
            return 0

        async def all_patient(count: int) -> list[int]:
            return list(await asyncio.gather(*(patient(number) for number in range(count))))

        def used() -> dict[str, float]:
            return {**running.said("seconds"), "clients": time.process_time()}

        marks = [used()]
        capacity = asyncio.run(full(chosen.requests))
        marks.append(used())
        memory.append(running.said("held")[0])
        answers, taken = asyncio.run(flood(TIMES * capacity))
        marks.append(used())
        memory.append(running.said("held")[0])
        after = asyncio.run(full(chosen.requests))
        tries = asyncio.run(all_patient(5 * chosen.requests))
        idle = running.said("idle")
    done = sum(each[0] == 200 for each in answers)
    late = sorted(each[3] * 1e3 for each in answers if each[0] == 429)
    other = {each[0] for each in answers} - {200, 429}
    print(f"capacity: {capacity:.2f} requests a second, {after:.2f} after the flood of {TIMES} "
          "times as many:")  # fmt: skip
    print(f"{len(answers):,} in {taken:.1f} s, {done} done, {done / taken:.2f} a second, "
          f"{2 * done / taken / (capacity + after):.2f} of the capacity")  # fmt: skip
    if late:
        print(f"{len(late):,} refused after {statistics.median(late):.1f} ms (p50), "
              f"{late[int(0.95 * len(late))]:.1f} ms (p95), {late[-1]:.0f} ms at most")  # fmt: skip
    print(f"{sum(map(bool, tries))} of {len(tries)} that came again as they were told to were done,"
          f" after {statistics.mean(tries):.1f} tries")  # fmt: skip
    print(f"MiB at first, after full work, and after the flood: {memory}")
    for name, before, after in zip(("full work", "the flood"), marks, marks[1:], strict=False):
        shares = {each: round(after[each] - before[each], 2) for each in after}
        print(f"seconds of processors in {name}: {shares}")
    return _said("nothing else came back, and all work ended", not other and all(tries) and idle)


def disconnects(chosen: argparse.Namespace) -> bool:
    chance = random.Random(1)
    with Running(chosen) as running:

        async def leave(number: int) -> None:
            body = {
                "model": NAME, "prompt": running.prompt(number, chosen.prompt),
                "max_tokens": chosen.new, "stream": bool(number % 2), "seed": number,
            }  # fmt: skip
            at = chance.choice([-chance.randint(1, 200), chance.randint(1, 4000)])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    post(running.port, "/v1/completions", body, at), chance.uniform(0.01, 0.5)
                )

        async def fill() -> None:
            for heat in (0, 1):
                prompts = [running.prompt(n, chosen.prompt) for n in range(chosen.requests)]
                asks = [running.ask(each, chosen.new, temperature=heat) for each in prompts]
                await asyncio.gather(*asks)

        async def many(first: int, count: int) -> None:
            for start in range(first, first + count, 20):
                await asyncio.gather(*(leave(start + n) for n in range(20)))

        # memory of keys and values is taken as rows first reach it: each is filled to its end
        asyncio.run(fill())
        asyncio.run(many(0, WARM_UP))
        running.said("idle")
        before, objects = running.said("held"), running.said("objects")
        began, sizes = time.perf_counter(), [before[0]]
        for start in range(0, chosen.count, 1000):
            asyncio.run(many(WARM_UP + start, min(1000, chosen.count - start)))
            running.said("idle")
            sizes.append(running.said("held")[0])
        ended = time.perf_counter()
        idle = running.said("idle")
        freed = time.perf_counter() - ended
        after, more = running.said("held"), running.said("objects")
        free = running.said("free")
        text = text_of(asyncio.run(running.ask(running.prompt(3, chosen.prompt), chosen.new)))
    print(f"{chosen.count} clients left in {ended - began:.1f} s; all work had ended {freed:.2f} s "
          f"later; {free} of {chosen.requests} slots free")  # fmt: skip
    print(f"MiB, files and threads before: {before}, after: {after}; Python's objects {objects:,}, "
          f"{more:,}; the next answer has {len(text)} characters")  # fmt: skip
    apart = max(abs(each / before[0] - 1) for each in sizes)
    print(f"MiB after each 1,000: {sizes[1:]}; {apart:.2%} from before at most")
    kept = apart <= 0.01 and before[1:] == after[1:] and abs(more - objects) < chosen.count / 10
    good = idle and free == chosen.requests and bool(text) and kept
    return _said("slots are back, and nothing is left", good)


def lookup(chosen: argparse.Namespace) -> bool:
    same, faster = True, []
    with Running(chosen) as running:
        body: dict[str, Any] = {"model": NAME, "max_tokens": chosen.new, "temperature": 0}

        def answer(number: int, prediction: str | None) -> tuple[str, float]:
            text = running.said("decode", running.prompt(number, chosen.prompt))
            asked = f"Repeat this text word for word:\n{text}"
            given = {**body, "messages": [{"role": "user", "content": asked}]}
            if prediction is not None:
                given["prediction"] = {"type": "content", "content": prediction}
            found = asyncio.run(post(running.port, "/v1/chat/completions", given))
            return read(found)["choices"][0]["message"]["content"], found[3]

        for number in range(chosen.requests):
            before = running.said("counts")
            plain, slow = answer(number, None)
            after = running.said("counts")
            own = [after[name] - before[name] for name in ("drafted", "accepted")]
            again, quick = answer(number, plain)
            same = same and plain == again
            faster.append(slow / quick)
            print(f"  {slow:.2f} s, {own[1]} of {own[0]} tokens drafted from the text came true; "
                  f"{quick:.2f} s with a prediction", flush=True)  # fmt: skip
    print(f"with the answer as prediction: {spread(faster, 2)} times as fast")
    return _said("texts are equal", same)


def soak(chosen: argparse.Namespace) -> bool:
    sources = {each: each for each in ("scenes-clip", "scenes-vlm", "scenes-diffusion")}
    chance, url = random.Random(1), PIXEL
    found: list[tuple[str, float, int, float]] = []  # family, end, status, seconds
    held: list[tuple[float, float]] = []
    with Running(chosen, sources, max_queue=4 * chosen.requests) as running:

        def ask(number: int) -> tuple[str, str, dict[str, Any]]:
            kind = chance.choice(["text"] * 4 + ["embed", "see", "draw"])
            words = " ".join(chance.choices(["a", "red", "blue", "circle", "star", "over"], k=6))
            bodies: dict[str, tuple[str, dict[str, Any]]] = {
                "text": ("/v1/completions", {
                    "model": NAME, "prompt": running.prompt(number, chosen.prompt),
                    "max_tokens": chosen.new, "seed": number, "stream": bool(number % 2)}),
                "embed": ("/v1/embeddings", {"model": "scenes-clip", "input": [words] * 4}),
                "see": ("/v1/tasks/image-to-text", {"model": "scenes-vlm", "inputs": url}),
                "draw": ("/v1/images/generations", {
                    "model": "scenes-diffusion", "prompt": words, "steps": 4, "seed": number}),
            }  # fmt: skip
            return kind, *bodies[kind]

        async def client(first: int, began: float) -> None:
            number = first
            while time.perf_counter() - began < chosen.seconds:
                kind, path, body = ask(number)
                status, _, _, taken = await post(running.port, path, body)
                found.append((kind, time.perf_counter() - began, status, taken))
                number += chosen.requests

        async def watch(began: float) -> None:
            while time.perf_counter() - began < chosen.seconds:
                await asyncio.sleep(min(10.0, chosen.seconds / 40))
                held.append((time.perf_counter() - began, running.said("held")[0]))

        async def all_clients() -> None:
            began = time.perf_counter()
            clients = [client(n, began) for n in range(chosen.requests)]
            await asyncio.gather(watch(began), *clients)

        asyncio.run(all_clients())
        idle = running.said("idle")
    quarter = chosen.seconds / 4
    for kind in sorted({each[0] for each in found}):
        print(f"{kind}: {sum(each[0] == kind for each in found):,} requests; p50, p99 by quarters:")
        for part in range(4):
            times = sorted(
                each[3] for each in found if each[0] == kind and each[1] // quarter == part
            )
            if times:
                print(f"  {statistics.median(times):.2f} s, "
                      f"{times[int(0.99 * len(times))]:.2f} s")  # fmt: skip
    middles = [
        statistics.median([mib for at, mib in held if at // quarter == part]) for part in range(4)
    ]
    print(f"MiB, median of each quarter: {middles}; statuses: {Counter(e[2] for e in found)}")
    return _said("all were answered, and all work ended", idle and {e[2] for e in found} == {200})


def stop(chosen: argparse.Namespace) -> bool:
    words = [sys.executable, "-m", "bedstone", "serve", f"{NAME}={chosen.model}", "--port", "0"]
    words += ["--precision", chosen.precision, "--kv-memory", "1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        began, port = time.perf_counter(), 0
        for line in process.stderr:
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
                break
        print(f"ready after {time.perf_counter() - began:.1f} s")
        threading.Thread(target=process.stderr.read, daemon=True).start()

        async def streams() -> tuple[list[Answer], float]:
            body = {"model": NAME, "prompt": "Once upon a time", "max_tokens": chosen.new,
                    "stream": True}  # fmt: skip
            asks = [post(port, "/v1/completions", body) for _ in range(chosen.requests)]
            waiting = [asyncio.ensure_future(each) for each in asks]
            await asyncio.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            sent = time.perf_counter()
            return list(await asyncio.gather(*waiting)), sent

        answers, sent = asyncio.run(streams())
        code = process.wait(60)
        whole = sum(each[2].rstrip().endswith(b"[DONE]\r\n\r\n0") or b"[DONE]" in each[2]
                    for each in answers)  # fmt: skip
        print(f"{whole} of {len(answers)} streams ended whole; the process {code} after "
              f"{time.perf_counter() - sent:.1f} s")  # fmt: skip
        return _said("it ended as it should", whole == len(answers) and code == 0)
    finally:
        process.kill()
        process.wait()


def _said(text: str, holds: bool) -> bool:
    print(f"{text}: {'yes' if holds else 'no'}")
    return holds


PARTS = {
    each.__name__: each
    for each in (rate, company, prefix, overload, disconnects, lookup, soak, stop)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=list(PARTS), default="rate")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sys.exit(not PARTS[chosen.part](chosen))


if __name__ == "__main__":
    main()
