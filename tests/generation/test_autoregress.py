"""Generation by ids: the cache equals the full pass, a batch equals its rows one by one."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import decode, generate, pad, prefill, stream
from bedstone.generation.ranking import rank
from bedstone.generation.sampling import Sampling
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.masks import Documents
from bedstone.runtime import Precision
from networks import randomise

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "gpt2": {"layout": "gpt2"},
    "llama": {"layout": "llama", "kv_heads": 2, "tied": False},
    "llama-rope-scaling": {"layout": "llama", "kv_heads": 1, "rope_scaling": LLAMA3},
    "mistral-window": {"layout": "mistral", "kv_heads": 2, "window": 5},
    "qwen2-some-windows": {"layout": "qwen2", "window": 4, "window_layers": (1,)},
    "qwen3": {"layout": "qwen3", "kv_heads": 2, "head_width": 16},
}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [9], [2, 7, 1, 8, 2, 8]]
CPU = torch.device("cpu")


def network(**changes):
    shape = {"vocab_size": 61, "width": 32, "layers": 3, "heads": 4, "hidden": 48, "context": 48}
    made = build(GPTConfig(**{**shape, **changes}))
    randomise(made, seed=3)
    return made.eval()


@pytest.fixture(params=CASES, ids=str)
def model(request):
    return network(**CASES[request.param])


@pytest.fixture
def qwen3():
    return network(layout="qwen3", kv_heads=2)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2], [PROMPTS[0], PROMPTS[0]]], ids=str)
@pytest.mark.parametrize("ready", [False, True], ids=["plain", "ready"])
def test_cached_decoding_equals_the_full_pass(model, prompts, ready):
    rows = [list(prompt) for prompt in prompts]
    used = for_inference(model, torch.float32) if ready else model
    cache = used.new_cache(len(rows), 32)
    ids, lengths = pad(rows, CPU)
    logits = prefill(used, ids, lengths, cache)
    for step in range(8):
        for row, known in enumerate(rows):
            with torch.no_grad():
                full = model(torch.tensor([known]))[0, -1]
            torch.testing.assert_close(logits[row], full, atol=1e-5, rtol=1e-5)
        tokens = torch.tensor([(11 * step + 7 * row) % 61 for row in range(len(rows))])
        for known, token in zip(rows, tokens.tolist(), strict=True):
            known.append(token)
        logits = decode(used, tokens, cache)


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 64])
def test_prefill_by_chunks_equals_prefill_at_once(model, chunk):
    ids, lengths = pad(PROMPTS, CPU)
    caches = [model.new_cache(len(PROMPTS), 20) for _ in range(2)]
    whole = prefill(model, ids, lengths, caches[0])
    parts = prefill(model, ids, lengths, caches[1], chunk=chunk)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    tokens = torch.tensor([1, 2, 3, 4])
    after = [decode(model, tokens, cache) for cache in caches]
    torch.testing.assert_close(after[0], after[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=14),
        Sampling(max_tokens=14, temperature=0.9, top_k=20, repetition_penalty=1.2),
    ],
    ids=["greedy", "sampled"],
)
def test_a_batch_equals_its_rows_one_by_one(model, sampling):
    seeds = [5, 6, 7, 8]
    eos = [0, 17, 23, 40]  # so that rows end and leave at different steps
    together = generate(model, PROMPTS, sampling, eos=eos, seeds=seeds)
    for prompt, seed, found in zip(PROMPTS, seeds, together, strict=True):
        alone = generate(model, [prompt], sampling, eos=eos, seeds=[seed])[0]
        assert (found.ids, found.finish) == (alone.ids, alone.finish)
        torch.testing.assert_close(
            found.log_probabilities, alone.log_probabilities, atol=1e-4, rtol=0
        )


def test_rows_that_end_at_different_steps_dont_disturb_the_rest(qwen3):
    def ended(step):
        lengths[step.row] += 1
        return lengths[step.row] == (2, 9, 1, 5)[step.row]

    free = generate(qwen3, PROMPTS, Sampling(max_tokens=9))
    lengths = [0] * 4
    found: list[list[int]] = [[] for _ in PROMPTS]
    for step in stream(qwen3, PROMPTS, Sampling(max_tokens=20), ended=ended):
        found[step.row].append(step.token)
    assert [len(ids) for ids in found] == [2, 9, 1, 5]
    for ids, whole in zip(found, free, strict=True):
        assert ids == whole.ids[: len(ids)]


def test_log_probabilities_are_those_of_a_full_pass(qwen3):
    sampling = Sampling(max_tokens=10, temperature=0.5, top_k=3, repetition_penalty=1.5)
    results = generate(qwen3, PROMPTS, sampling, seeds=[1, 2, 3, 4], top=4)
    for prompt, result in zip(PROMPTS, results, strict=True):
        with torch.no_grad():
            known = qwen3(torch.tensor([prompt + result.ids]))[0].log_softmax(-1)
        for place, token in enumerate(result.ids):
            expected = known[len(prompt) + place - 1]
            assert result.log_probabilities[place] == pytest.approx(
                expected[token].item(), abs=1e-4
            )
            best = expected.topk(4)
            assert [other for other, _ in result.top[place]] == best.indices.tolist()
            assert [value for _, value in result.top[place]] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )


def test_an_end_token_ends_with_stop(qwen3):
    free = generate(qwen3, [PROMPTS[0]], Sampling(max_tokens=6))[0]
    assert free.finish == "length"
    assert len(free.ids) == 6
    last = free.ids[3]
    found = generate(qwen3, [PROMPTS[0]], Sampling(max_tokens=6), eos=[last])[0]
    assert found.finish == "stop"
    assert found.ids == free.ids[: free.ids.index(last) + 1]


def test_a_row_ends_at_the_end_of_the_context(qwen3):
    results = generate(qwen3, [[1] * 47, [2] * 40], Sampling(max_tokens=100))
    assert [len(result.ids) for result in results] == [1, 8]
    assert all(result.finish == "length" for result in results)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1], []], r"prompts\[1\]: is empty"),
        ([[1] * 48], "48 tokens; the model's context is 48"),
        ([[1, 61]], "id 61; ids must be from 0 to 60"),
        ([[-1]], "id -1"),
    ],
)
def test_refuses_prompts_it_cant_continue(qwen3, prompts, words):
    with pytest.raises(BedstoneError, match=words):
        stream(qwen3, prompts)  # at the call, before any step


def test_refuses_seeds_that_arent_one_a_prompt(qwen3):
    with pytest.raises(BedstoneError, match="seeds: 1 were given for 2"):
        stream(qwen3, [[1], [2]], seeds=[1])


def test_no_prompts_no_results(qwen3):
    assert generate(qwen3, []) == []


def test_the_same_seed_gives_the_same_tokens(qwen3):
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=11)
    first, second = (generate(qwen3, PROMPTS[:2], sampling) for _ in range(2))
    assert [one.ids for one in first] == [two.ids for two in second]
    other = generate(qwen3, PROMPTS[:2], Sampling(max_tokens=12, temperature=1.0, seed=99))
    assert [one.ids for one in first] != [two.ids for two in other]


def test_precision_leaves_the_network_as_it_was(qwen3):
    plain = generate(qwen3, PROMPTS, Sampling(max_tokens=8))
    fp32 = generate(qwen3, PROMPTS, Sampling(max_tokens=8), precision=Precision(CPU, torch.float32))
    assert [one.ids for one in plain] == [two.ids for two in fp32]
    bf16 = generate(
        qwen3, PROMPTS, Sampling(max_tokens=8), precision=Precision(CPU, torch.bfloat16)
    )
    assert bf16[0].log_probabilities[0] == pytest.approx(plain[0].log_probabilities[0], abs=0.2)
    assert {weight.dtype for weight in qwen3.parameters()} == {torch.float32}
    assert all(weight.requires_grad for weight in qwen3.parameters())


def test_steps_of_a_round_come_in_order_and_the_caller_isnt_in_inference_mode(qwen3):
    steps = stream(qwen3, PROMPTS, Sampling(max_tokens=3))
    rows = []
    for step in steps:
        assert not torch.is_inference_mode_enabled()
        rows.append(step.row)
    assert rows == [0, 1, 2, 3] * 3


SCALINGS = {
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 32,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
}


@pytest.fixture(scope="module", params=SCALINGS)
def stretched(request):
    """A network whose rotary frequencies depend on a sequence's length."""
    rope = SCALINGS[request.param]
    shape = {"vocab_size": 61, "width": 32, "layers": 2, "heads": 4, "hidden": 48}
    context = 32 if request.param == "dynamic" else 128
    made = build(GPTConfig(layout="llama", context=context, rope_scaling=rope, **shape), seed=0)
    randomise(made, 1)
    with torch.no_grad():
        for layer in made.stack.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(3)
    object.__setattr__(made.config, "context", 128)  # positions past the trained length
    return made.eval()


def test_rows_keep_their_own_frequencies_beside_longer_ones(stretched):
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 61, (size,), generator=draw).tolist() for size in (12, 90, 28)]
    how = Sampling(max_tokens=10)  # the third grows past the trained length
    together = generate(stretched, prompts, how)
    for prompt, found in zip(prompts, together, strict=True):
        alone = generate(stretched, [prompt], how)[0]
        assert found.ids == alone.ids
        assert found.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)
    logits = prefill(stretched, *pad(prompts, CPU), stretched.new_cache(3, 100))
    parts = prefill(stretched, *pad(prompts, CPU), stretched.new_cache(3, 100), chunk=20)
    assert torch.allclose(logits, parts, atol=1e-4)


def test_padded_and_packed_rows_keep_their_own_frequencies(stretched):
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 61, (size,), generator=draw) for size in (12, 90)]
    ids, lengths = pad([row.tolist() for row in rows], CPU)
    keep = torch.arange(ids.shape[1]) < lengths[:, None]
    numbers = torch.cat([torch.full((len(row),), n - 1) for n, row in enumerate(rows)])[None]
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    with torch.no_grad():
        padded = stretched(ids, keep)
        whole = torch.cat(rows)[None]
        packed = stretched(whole, mask=Documents(numbers), positions=positions)[0]
        alone = [stretched(row[None])[0] for row in rows]
    for number, (row, want) in enumerate(zip(rows, alone, strict=True)):
        assert torch.allclose(padded[number, : len(row)], want, atol=1e-3)
    assert torch.allclose(packed, torch.cat(alone), atol=1e-3)


def test_candidates_keep_their_own_frequencies(stretched):
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 61, (size,), generator=draw).tolist() for size in (26, 80)]
    candidates = [[3, 4, 5], list(range(10, 20))]
    together = rank(stretched, prompts, candidates)
    for row, prompt in enumerate(prompts):
        for column, candidate in enumerate(candidates):
            alone = rank(stretched, [prompt], [candidate])
            assert together[row, column] == pytest.approx(float(alone), abs=1e-3)
