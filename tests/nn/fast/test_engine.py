"""The C++ engine: every form of it beside torch's own operations."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate, ready
from bedstone.generation.sampling import Sampling
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast import kernels
from bedstone.nn.fast.decoder import Decoder, decoder_of
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.fast.panels import BF16, FP32, interleaved, joined, panels
from bedstone.nn.fast.products import EngineLinear, fits
from bedstone.nn.fast.program import LOGITS, PRODUCT, NotPossible, Program, X
from bedstone.nn.layers import ACTIVATIONS
from bedstone.nn.lora import LoraConfig, add_adapter, use_adapter
from bedstone.nn.quantize import Codes, QuantizedLinear, encode, quantize
from bedstone.runtime import Precision
from engine_forms import FORMS

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"there is no engine here: {kernels.why_not()}"
)
SHAPES = {
    "llama": {"layout": "llama", "width": 48, "heads": 6, "kv_heads": 2, "hidden": 80},
    "qwen3": {
        "layout": "qwen3", "width": 64, "heads": 4, "kv_heads": 2, "hidden": 96, "head_width": 24,
    },
    "gpt2": {"layout": "gpt2", "width": 36, "heads": 3, "hidden": 100},
    "mistral": {
        "layout": "mistral", "width": 40, "heads": 4, "kv_heads": 4, "hidden": 100, "window": 5,
    },
    "qwen2": {
        "layout": "qwen2", "width": 64, "heads": 4, "kv_heads": 1, "hidden": 72, "tied": False,
    },
    "scaled": {
        "layout": "llama", "width": 32, "heads": 2, "hidden": 64,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
}  # fmt: skip


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Each set of instructions that this processor has."""
    monkeypatch.setenv("BEDSTONE_ENGINE", request.param)
    return request.param


def network(name="llama", vocab_size=101, layers=2):
    torch.manual_seed(1)
    made = build(GPTConfig(vocab_size=vocab_size, layers=layers, context=96, **SHAPES[name])).eval()
    with torch.no_grad():
        for path, weight in made.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[1] ** -0.5)
            elif "bias" in path:
                weight.normal_(std=0.1)
        made.embed.weight.normal_()
    return made


@torch.inference_mode()
def read(decoder, ids, parts):
    """Logits of rows read in parts of so many tokens."""
    cache = decoder.new_cache(len(ids), ids.shape[1] + 3)
    return torch.cat([decoder.head(decoder.states(p, cache=cache)) for p in ids.split(parts, 1)], 1)


def product(weight, kind, x, coarse=2.0, threads=1, bias=None, activation=0):
    """x W^T by the engine."""
    program = Program()
    program.add(PRODUCT, X, LOGITS, panels(weight, kind, bias=bias).settle(), activation=activation)
    held = program.weights[0]
    rows = torch.zeros(len(x), held.ins)
    rows[:, : x.shape[1]] = x
    area = torch.zeros(max(len(x), 2 * threads), 4 * held.ins, dtype=torch.uint8)
    scores, out = torch.zeros(threads, held.ins), torch.full((len(x), held.outs), 9.0)
    call = kernels.Call(ops=program.array, count=1, rows=len(x), threads=threads, active=threads)
    call.area, call.area_stride, call.coarse = area.data_ptr(), area.shape[1], coarse
    call.scores, call.scores_stride = scores.data_ptr(), held.ins
    call.buffers[X], call.buffers[LOGITS] = rows.data_ptr(), out.data_ptr()
    call.strides[X], call.strides[LOGITS] = held.ins, held.outs
    kernels.library().bedstone_run(ctypes.byref(call))
    return out[:, : weight.shape[0]]


@pytest.mark.parametrize("name", SHAPES)
def test_a_decoder_computes_as_its_network(form, name):
    own = network(name)
    ids = torch.randint(101, (2, 40))
    with torch.inference_mode():
        expected = own(ids)
    decoder = Decoder(own, torch.float32)
    torch.testing.assert_close(read(decoder, ids, 40), expected, rtol=1e-4, atol=1e-4)
    rough = read(Decoder(own, torch.bfloat16), ids, 40)
    assert (rough - expected).abs().max() < 0.02 * expected.abs().max()


def test_an_adapter_over_codes_is_left_to_torch():
    own = network("scaled")
    quantize(own, bits=8)
    add_adapter(own, LoraConfig(rank=2))
    with pytest.raises(NotPossible, match="adapter"):
        Decoder(own, torch.float32)
    use_adapter(own, None)
    assert Decoder(own, torch.float32).nbytes


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_codes_are_read_as_they_are(form, name, bits):
    own = network(name)
    for path in [path for path, part in own.stack.named_modules() if type(part) is nn.Linear]:
        parent, _, leaf = path.rpartition(".")
        part = own.stack.get_submodule(path)
        four = bits == 4 and part.in_features % 32 == 0
        layer = QuantizedLinear(part, 4 if four else 8, 32)
        setattr(own.stack.get_submodule(parent), leaf, layer)
    ids = torch.randint(101, (1, 30))
    with torch.inference_mode():
        expected = own(ids)
    exact = read(Decoder(own, torch.float32), ids, 30)
    torch.testing.assert_close(exact, expected, rtol=2e-3, atol=1e-2)
    coded = read(Decoder(own, torch.bfloat16), ids, 30)
    assert (coded - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("cache_bits", [None, 8])
def test_a_token_s_numbers_don_t_depend_on_what_is_read_with_it(form, dtype, bits, cache_bits):
    decoder = Decoder(network("llama"), dtype, bits, cache_bits=cache_bits)
    ids = torch.randint(101, (9, 37))
    together = read(decoder, ids, 37)
    for parts in (1, 5, 8):
        assert torch.equal(read(decoder, ids, parts), together)
    assert torch.equal(read(decoder, ids[4:5], 3)[0], together[4])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(read(decoder, ids, 6), together)
    finally:
        torch.set_num_threads(before)


def test_both_sets_of_instructions_agree(monkeypatch):
    if len(FORMS) < 2:
        pytest.skip("the processor has one of them")
    own, ids = network("qwen3"), torch.randint(101, (1, 20))
    found = []
    for form in FORMS:
        monkeypatch.setenv("BEDSTONE_ENGINE", form)
        found.append(read(Decoder(own, torch.float32, 8), ids, 20))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("auto" not in FORMS, reason="the processor has no matrix unit")
def test_whole_numbers_are_the_same_by_the_matrix_unit(monkeypatch):
    torch.manual_seed(3)
    codes, x = encode(torch.randn(80, 192), 8), torch.randn(45, 192)
    x[7, 40] = 300.0  # a group that doesn't fit 8 bits
    found = []
    for form in ("auto", "avx512"):
        monkeypatch.setenv("BEDSTONE_ENGINE", form)
        found.append([product(codes, BF16, x[:rows]) for rows in (9, 16, 17, 32, 33, 45)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("outs, ins", [(1, 1), (5, 33), (16, 32), (17, 64), (33, 31), (48, 160)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 13, 41])
def test_products_of_odd_shapes(form, outs, ins, rows):
    weight, x, bias = torch.randn(outs, ins), torch.randn(rows, ins), torch.randn(outs)
    expected = x @ weight.T + bias
    exact = product(weight, FP32, x, bias=bias)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-4)
    low = product(weight, BF16, x, bias=bias)
    torch.testing.assert_close(low, expected, rtol=0.03, atol=0.1)
    codes = encode(weight, 8)
    expected = x @ codes.whole(torch.float32).T + bias
    fine = product(codes, BF16, x, coarse=0.0, bias=bias)
    torch.testing.assert_close(fine, expected, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(product(codes, BF16, x, bias=bias), expected, rtol=0.05, atol=0.4)


@pytest.mark.parametrize("kind", ["fp32", "bf16", 8, 4])
def test_a_row_s_products_are_the_same_alone_and_among_others(form, kind):
    torch.manual_seed(5)
    weight, x = torch.randn(96, 256), torch.randn(35, 256)
    x[::2, 40:44] *= 50  # groups that don't fit 8 bits
    source = encode(weight, kind, group=32) if isinstance(kind, int) else weight
    how = FP32 if kind == "fp32" else BF16
    together = product(source, how, x)
    for rows in (1, 2, 3, 5, 8, 9, 17):
        assert torch.equal(product(source, how, x[:rows]), together[:rows]), rows


def test_sums_don_t_overflow(form):
    """All numbers at their extremes: AVX2's own 8-bit product would saturate."""
    for sign in (1, -1):
        codes = Codes(torch.full((32, 256), 127 * sign, dtype=torch.int8), torch.ones(32, 1))
        x = torch.full((3, 256), 2.0)
        assert torch.equal(product(codes, BF16, x), torch.full((3, 32), 2.0 * 127 * 256 * sign))
    four = Codes.of(
        torch.full((32, 256), 15, dtype=torch.uint8), torch.ones(32, 4).half(),
        torch.zeros(32, 4).half(),
    )  # fmt: skip
    torch.testing.assert_close(product(four, BF16, x), torch.full((3, 32), 2.0 * 15 * 256))


@pytest.mark.parametrize("cache_bits", [None, 8])
def test_nan_of_a_token_that_a_row_does_not_see_stays_away(form, cache_bits):
    """Of a wrong draft whose slots the cache still holds, and of later drafts of a pass."""
    own = network("llama", layers=1)
    bad = 77
    own.embed.weight.data[bad] = float("nan")
    decoder = Decoder(own, torch.float32, cache_bits=cache_bits)

    def after(ids, cache):
        with torch.inference_mode():
            return decoder.states(torch.tensor([ids]), cache=cache)

    plain = decoder.new_cache(1, 40)
    expected = torch.cat([after([1, 2, 3], plain), after([4, 5], plain)], 1)
    cache = decoder.new_cache(1, 40)
    first = after([1, 2, 3, bad, 9], cache)
    assert torch.equal(first[:, :3], expected[:, :3]) and not first[:, 3:].isfinite().any()
    cache.rewind(3)
    assert torch.equal(after([4], cache), expected[:, 3:4])
    assert torch.equal(after([5], cache), expected[:, 4:])


def test_a_gate_of_another_group_is_left_to_torch():
    own = network("qwen3")
    mlp = own.stack[0]["mlp"].sublayer
    mlp.gate, mlp.up = QuantizedLinear(mlp.gate, 4, 32), QuantizedLinear(mlp.up, 4, 64)
    assert decoder_of(own, torch.float32) is None


def test_rows_of_zeros_give_zeros(form):
    weight = torch.randn(32, 64)
    weight[3] = 0
    x = torch.randn(4, 64)
    x[1] = 0
    for codes in (encode(weight, 8), encode(weight, 4, 32)):
        found = product(codes, BF16, x)
        assert found[1].abs().max() < 1e-3 and found[:, 3].abs().max() < 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_isn_t_finite_stays_visible(form, bad):
    x = torch.randn(3, 64)
    x[1, 40] = bad
    weight = torch.randn(32, 64)
    for given, kind in ((weight, FP32), (weight, BF16), (encode(weight, 8), BF16)):
        found = product(given, kind, x)
        assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()


def test_outliers_among_inputs_cost_little(form):
    torch.manual_seed(0)
    x, weight = torch.randn(8, 512), torch.randn(64, 512)
    x[:, 77] *= 100
    codes = encode(weight, 8)
    expected = x @ codes.whole(torch.float32).T
    fine, plain = product(codes, BF16, x), product(codes, BF16, x, coarse=1e9)
    assert (fine - expected).abs().mean() < 0.2 * (plain - expected).abs().mean()


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "quick_gelu", "relu", "tanh"])
def test_activations(form, name):
    from bedstone.nn.fast.program import ACTIVATIONS as KNOWN

    x = torch.linspace(-30, 30, 200)[:, None] @ torch.eye(1, 32)
    found = product(torch.eye(32), FP32, x, activation=KNOWN[ACTIVATIONS[name]])
    torch.testing.assert_close(found, ACTIVATIONS[name](x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_layers_side_by_side(bits):
    first, second = torch.randn(32, 64), torch.randn(32, 64)
    both = [encode(w, bits, 32) if bits else w for w in (first, second)]

    def fresh():
        return [panels(w, FP32, bias=torch.arange(32.0)) for w in both]

    parts = fresh()
    for way, order in ((joined, [0, 1, 2, 3]), (interleaved, [0, 2, 1, 3])):
        made = (way(parts) if way is joined else way(*parts)).settle()
        assert made.outs == 64
        where = [order.index(n) for n in range(4)]
        assert torch.equal(made.bias[where].flatten(), torch.arange(32.0).repeat(2))
        apart = torch.cat([part.settle().data for part in fresh()])
        assert torch.equal(made.data[where], apart)


def test_generation_takes_the_engine_and_writes_the_same(form):
    own = network("llama")
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    for sampling in (Sampling(max_tokens=20), Sampling(max_tokens=20, temperature=1.0, seed=3)):
        plain = generate(own, prompts, sampling)
        fast = generate(own, prompts, sampling, precision=Precision(CPU, torch.float32))
        assert [each.ids for each in fast] == [each.ids for each in plain]
    assert isinstance(ready(own, Precision(CPU, torch.float32)), Decoder)


def test_the_cache_follows_rows(form):
    decoder = Decoder(network("llama"), torch.float32)
    ids = torch.randint(101, (3, 21))
    cache = decoder.new_cache(3, 40)
    with torch.inference_mode():
        decoder.states(ids, cache=cache)
        more = torch.tensor([[7], [8], [9]])
        forked = cache.fork(torch.tensor([2, 0]))
        expected = decoder.states(more, cache=cache)
        assert torch.equal(decoder.states(more[[2, 0]], cache=forked), expected[[2, 0]])
        cache.rewind(21)
        cache.branch(torch.tensor([1, 1, 1]))
        assert torch.equal(decoder.states(more[[1]].expand(3, 1), cache=cache), expected[[1, 1, 1]])
        cache.keep(torch.tensor([2]))
        assert cache.rows == 1


def test_beams_that_move_read_on_as_if_they_had_been_read_anew(form):
    own = network("llama")
    for bits in (None, 8):
        decoder = Decoder(own, torch.float32, cache_bits=bits)
        prompts = torch.randint(0, 101, (2, 20))
        cache = decoder.new_cache(2, 60)
        decoder.states(prompts, cache=cache)
        held = [row.tolist() for row in prompts for _ in range(3)]
        cache.branch(torch.tensor([0, 0, 0, 1, 1, 1]))
        for step in range(22):
            rows = [*torch.randint(0, 3, (3,)).tolist(), *torch.randint(3, 6, (3,)).tolist()]
            if step == 15:
                rows = rows[3:]
            rows = [row - 3 if step > 15 else row for row in (rows[3:] if step > 15 else rows)]
            tokens = torch.randint(0, 101, (len(held),))
            decoder.step(tokens, cache)
            held = [[*row, token] for row, token in zip(held, tokens.tolist(), strict=True)]
            (cache.keep if step == 15 else cache.branch)(torch.tensor(rows))
            held = [held[row] for row in rows]
        again = decoder.new_cache(len(held), 60)
        decoder.states(torch.tensor(held), cache=again)
        tokens = torch.full((len(held),), 5)
        assert torch.equal(decoder.step(tokens, cache), decoder.step(tokens, again))


def test_without_an_engine_torch_computes(monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", "off")
    own = network("llama")
    assert decoder_of(own, torch.float32) is None
    assert "BEDSTONE_ENGINE" in kernels.why_not()
    with pytest.raises(NotPossible):
        Decoder(own, torch.float32)
    found = ready(own, Precision(CPU, torch.float32))
    assert isinstance(found, nn.Module)


def test_a_choice_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", "avx3")
    with pytest.raises(BedstoneError, match=r"BEDSTONE_ENGINE: 'avx3'.*avx512, avx2, off"):
        ready(network("llama"), Precision(CPU, torch.float32))


def test_linear_layers_of_other_networks(form):
    layer = QuantizedLinear(nn.Linear(96, 48), 8)
    assert fits(layer) and not fits(nn.Linear(96, 48))
    x = torch.randn(2, 300, 96)
    made = EngineLinear(layer, activation=ACTIVATIONS["gelu"])
    expected = ACTIVATIONS["gelu"](layer(x))
    torch.testing.assert_close(made(x), expected, rtol=0.05, atol=0.05)
    assert made(x.bfloat16()).dtype is torch.bfloat16
    assert made(x[:0]).shape == (0, 300, 48)
    twice = EngineLinear(layer, layer)
    assert torch.equal(twice(x)[..., :48], twice(x)[..., 48:])


def test_an_encoder_in_int8_uses_it():
    from bedstone.models.bert.network import BertConfig
    from bedstone.models.bert.network import build as build_bert

    own = build_bert(BertConfig(vocab_size=50, width=64, layers=2, heads=4, hidden=96)).eval()
    ready_one = for_inference(own, torch.float32, 8)
    assert sum(isinstance(part, EngineLinear) for part in ready_one.modules()) >= 6


def test_a_forked_child_computes_alone():
    """OpenMP's threads aren't in a child: it would wait for them for ever."""
    code = (
        "import os, torch, sys; sys.path[:0] = ['tests/nn/fast', 'tests']\n"
        "from test_engine import network, read, Decoder\n"
        "torch.set_num_threads(2)\n"
        "d = Decoder(network(), torch.float32); ids = torch.arange(12)[None]\n"
        "own = read(d, ids, 12)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    torch.set_num_threads(1)\n"
        "    os._exit(0 if torch.equal(read(d, ids, 12), own) else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=100)
    assert done.returncode == 0


@pytest.mark.slow
def test_a_damaged_file_in_the_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = kernels.instructions()
    file = kernels._built(chosen)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    assert (
        kernels._built(chosen) == file
        and kernels._digest(file) == file.with_suffix(".sha256").read_text()
    )
    assert list(file.parent.glob("*.so")) == [file]
    before = file.stat().st_mtime_ns
    assert kernels._built(chosen).stat().st_mtime_ns == before  # not made again


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="modes of folders")
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = kernels.cache_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    file = kernels._built(kernels.instructions())
    assert file.parent != folder and not list(folder.iterdir())


def test_no_compiler_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    kernels._loaded.cache_clear()
    try:
        assert kernels.library() is None and "g++" in kernels.why_not()
    finally:
        kernels._loaded.cache_clear()


@pytest.mark.slow
def test_a_cache_that_can_t_be_made_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernels._built(kernels.instructions()).is_file()
