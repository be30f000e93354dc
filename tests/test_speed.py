"""What `bench/speed.py` counts and compares, on a tiny network."""

import os
import time
from pathlib import Path

import pytest
import torch

import speed
import speed_machine
import speed_quality
import speed_sides
from bedstone.models.gpt.network import LAYOUTS
from bedstone.nn.quantize import quantize
from speed_quality import Quality

REPORT = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  18.545487 ±   1.800447
Mean PPL(base)                :  18.552301 ±   1.804120
Mean ln(PPL(Q)/PPL(base))     :  -0.000367 ±   0.002930
Mean PPL(Q)/PPL(base)         :   0.999633 ±   0.002929

====== KL divergence statistics ======
Mean    KLD:   0.003457 ±   0.000100

====== Token probability statistics ======
Same top p: 95.392 ± 0.657 %
"""


@pytest.fixture(scope="module")
def model():
    return speed.random_model(speed.RANDOM["random-small"])


def test_a_model_is_made_once_and_transformers_opens_it(tmp_path, model):
    transformers = pytest.importorskip("transformers")
    made, folder = speed.opened("random-small", tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert speed.opened("random-small", tmp_path)[1] == folder == speed.opened(str(folder), "")[1]
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    ids = torch.arange(12)[None]
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(made.network(ids), peer(ids).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.network(ids), model.network(ids))


def test_contestants_write_the_same_tokens(tmp_path, model):
    pytest.importorskip("transformers")
    _, folder = speed.opened("random-small", tmp_path)
    theirs = speed_sides.transformers(folder, 1, best=False)[0]
    ours, *_ = speed_sides.bedstone(model.network, folder, ["fp32"])
    prompts = speed.prompts(model, 3, 20)
    assert len({tuple(each) for each in prompts}) == 3
    for rows in (1, 3):
        for each in (ours, theirs):
            assert each.decode(prompts[:rows], 8) > 0 and each.prefill(prompts[0]) > 0
            assert each.decode(prompts[:rows], 8) > 0 and len(each.ids) == 8
        assert ours.ids == theirs.ids


def test_a_precision_that_is_not_known_is_left_out(model, capsys):
    assert speed_sides.ready_in(model.network, "fp7") is None
    assert "fp7" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["random-small", "random-gpt2"])
def test_a_tied_head_is_read_once_and_tables_are_not(name):
    config = speed.RANDOM[name]
    with torch.device("meta"):
        network = LAYOUTS[config.layout](config)
    width, kv = config.width, config.kv_heads * config.head_width
    maps = 3 if config.layout == "llama" else 2
    layer = 2 * width * width + 2 * width * kv + maps * width * config.hidden
    expected = config.layers * layer + config.vocab_size * width
    assert speed_sides.matrices(network) == expected


def test_quality_is_that_of_whole_logits(model):
    exact = model.network
    rough = speed.random_model(speed.RANDOM["random-small"]).network
    quantize(rough, bits=4, group=32)
    rows = torch.randint(4096, (3, 32), generator=torch.Generator().manual_seed(0))
    found = speed_quality.ours(exact, {"same": exact, "rough": rough}, rows, 32)
    singly = speed_quality.ours(exact, {"rough": rough}, rows, 1)
    with torch.no_grad():
        wanted = rows[:, 17:]
        base, own = (each(rows)[:, 16:-1].log_softmax(-1) for each in (exact, rough))
    losses = [-each.gather(-1, wanted[..., None]).mean() for each in (base, own)]
    figures = found["rough"].figures
    assert figures["perplexity"] == pytest.approx(losses[1].exp().item(), rel=1e-4)
    assert figures["perplexity ratio"] == pytest.approx(
        (losses[1] - losses[0]).exp().item(), rel=1e-4
    )
    kl = (base.exp() * (base - own)).sum(-1).mean()
    assert figures["kl"] == pytest.approx(kl.item(), rel=1e-3) and figures["kl"] > 0
    same = (base.argmax(-1) == own.argmax(-1)).float().mean()
    assert figures["equal likeliest"] == pytest.approx(same.item())
    assert singly["rough"].figures["kl"] == pytest.approx(figures["kl"], rel=1e-2)
    same = found["same"].figures
    assert (same["perplexity ratio"], same["equal likeliest"], same["kl"]) == (
        1.0,
        1.0,
        pytest.approx(0, abs=1e-6),
    )


def test_llama_cpp_s_report_is_read():
    found = speed_quality.read(REPORT)
    wanted = {"perplexity": 18.545487, "perplexity ratio": 0.999633, "kl": 0.003457}
    wanted["equal likeliest"] = 0.95392
    assert found == pytest.approx(wanted)
    (line,) = speed_quality.table({"llama.cpp Q8_0": Quality(figures=found)})[1:]
    assert line.split() == ["llama.cpp", "Q8_0", "18.5455", "0.99963", "0.9539", "0.003457"]


def test_a_tool_s_lost_report_is_had_again(tmp_path):
    script = tmp_path / "tool"
    script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\ntail -n +2 {tmp_path}/calls\n")
    script.chmod(0o755)
    assert speed_sides.run([script], wanted="(x)") == "x"
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    with pytest.raises(SystemExit, match="exit 0"):
        speed_sides.run([script], wanted="(never)")
    script.write_text("#!/bin/sh\necho why >&2\nexit 3\n")
    with pytest.raises(SystemExit, match=r"(?s)exit 3.*why"):
        speed_sides.run([script])


def test_each_is_beside_its_like():
    names = ["transformers fp32", "bedstone fp32", "bedstone int8", "llama.cpp Q8_0"]
    assert speed.pairs(names) == [
        ("bedstone fp32", "transformers fp32"),
        ("bedstone int8", "llama.cpp Q8_0"),
        ("bedstone int8", "transformers fp32"),
    ]
    names = ["bedstone int8 x1", "bedstone int8 x8", "llama.cpp Q8_0 x8"]
    assert speed.pairs(names) == [
        ("bedstone int8 x8", "bedstone int8 x1"),
        ("bedstone int8 x8", "llama.cpp Q8_0 x8"),
        ("llama.cpp Q8_0 x8", "llama.cpp Q8_0 x1"),
    ]


def test_turns_leave_out_what_a_contestant_cannot(capsys):
    calls = []
    measures = {"a": lambda: calls.append("a") or 2.0, "b": lambda: None, "c": lambda: 3.0}
    assert speed.take_turns(measures, 2) == {"a": [2.0, 2.0], "c": [3.0, 3.0]}
    assert len(calls) == 3  # the first isn't counted
    assert "round 2: a 2, c 3" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")
def test_the_own_work_is_not_that_of_others():
    watch = speed_machine.Watch()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    wall, everyone, mine = (b - a for a, b in zip(watch._start, watch._read(), strict=True))
    assert wall >= 0.4 and mine >= 0.4 and everyone >= mine - 0.1
    assert watch.others() <= os.cpu_count() + 0.1


def test_noise_stops_the_measurement(monkeypatch, capsys):
    monkeypatch.setattr(speed_machine.Watch, "others", lambda self: 0.5)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit, match=r"0\.50 cores"):
        speed_machine.require_quiet(anyway=False)
    speed_machine.require_quiet(anyway=True)
    assert "warning" in capsys.readouterr().out


def test_the_roof_is_that_of_a_memory(monkeypatch):
    monkeypatch.setattr(speed_machine, "BYTES", 8 << 20)
    by_loop = speed_machine.roof(1)
    by_torch = speed_machine._roof_by_torch()
    assert 1e8 < by_torch < 1e13 and 1e8 < by_loop < 1e13
    monkeypatch.setenv("PATH", "")
    assert 1e8 < speed_machine.roof(1) < 1e13  # without a compiler
