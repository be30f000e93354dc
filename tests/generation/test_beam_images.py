"""Captions and answers by beam search: BLIP's own, and as if each text were alone."""

import json

import pytest
import torch

from bedstone.generation.beam import beam_search
from bedstone.generation.ranking import rank
from bedstone.generation.settings import PUBLISHED, BeamSearch
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import build_blip
from bedstone.models.published import layout, to_published
from networks import randomise

BOS, SEP, PAD, V = 1, 2, 0, 43
CANDIDATES = [[5, 6, SEP], [7, SEP], [5, 9, 4, 8, SEP], [7]]


def network(kind: str):
    image = {"image_size": 20, "patch": 5, "width": 24, "layers": 1, "heads": 4}
    text = {"vocab_size": V, "context": 12, "width": 24, "layers": 2, "heads": 4}
    text |= {"bos_id": BOS, "eos_id": SEP, "pad_id": PAD}
    shape = {"layout": "blip", "image": image, "text": text, "head": {"kind": kind}}
    made = build_blip(blip_config(shape))
    randomise(made, 4)
    with torch.no_grad():  # what is written depends on what is read, and ends
        for name, weight in made.named_parameters():
            if weight.dim() > 1:
                weight.mul_(4)
            elif name.endswith("bias"):
                weight.sub_(1)
        made.head.out.bias[SEP] += 5
    return made.eval()


def twin(ours, folder):
    import transformers

    written = layout("blip").write_config(ours.config)
    (folder / "config.json").write_text(json.dumps(written))
    config = transformers.BlipConfig.from_pretrained(folder)
    made = getattr(transformers, written["architectures"][0])(config).eval()
    made.load_state_dict(to_published(layout("blip"), ours), strict=False)
    return made


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(6))


def questions(count: int) -> torch.Tensor:
    return torch.randint(3, V, (count, 5), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", ["captions", "answers"])
@pytest.mark.parametrize(
    "search",
    [
        BeamSearch(beams=3, max_tokens=8, returned=2),
        BeamSearch(4, 2.0, True, 2, 2, 4, 8, 1.3),
        BeamSearch(3, -1.0, "never", returned=3, max_tokens=8),
    ],
    ids=["plain", "all", "never"],
)
def test_beams_write_what_the_published_class_writes(kind, search, tmp_path):
    ours = network(kind)
    theirs, x, asked = twin(ours, tmp_path), pixels(6), questions(6)
    settings = {name: getattr(search, field) for name, field in PUBLISHED.items()}
    out = theirs.generate(
        pixel_values=x,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
        **({"input_ids": asked} if kind == "answers" else {}),
    )
    with torch.no_grad():
        memory = ours.memory(x)
        memory = ours.read(asked, None, memory) if kind == "answers" else memory
    found = beam_search(ours.writer(memory), [[BOS]] * 6, search, eos=[SEP])
    found = [each for own in found for each in own]
    rows = [row[1:] for row in out.sequences.tolist()]
    cut = [row[: row.index(SEP) + 1] if SEP in row else row for row in rows]
    assert [list(each.ids) for each in found] == cut
    scores = [each.score for each in found]
    assert scores == pytest.approx(out.sequences_scores.tolist(), abs=1e-4, rel=1e-4)
    assert len({each.ids for each in found}) > search.returned
    assert {each.finish for each in found} >= {"stop"}


def test_padded_questions_share_a_batch_with_beams_and_candidates():
    """Two questions a picture, of different lengths: each as if it were alone."""
    ours, asked = network("joint"), questions(6)
    real = torch.ones(6, 5, dtype=torch.bool)
    real[1, 2:], real[4, 3:] = False, False
    with torch.no_grad():
        memory = ours.memory(pixels(3))
        states = ours.read(asked, real, memory)
    search = BeamSearch(beams=3, returned=3, max_tokens=9, early_stopping=True)
    together = beam_search(ours.writer(states, real), [[BOS]] * 6, search, eos=[SEP])
    ranked = rank(ours.writer(states, real), [[BOS]] * 6, CANDIDATES)
    assert len({len(own[0].ids) for own in together}) > 1  # they leave at different steps
    for row in range(6):
        with torch.no_grad():
            short = asked[row : row + 1, : int(real[row].sum())]
            alone = ours.writer(ours.read(short, None, memory[[row // 2]]))
        own = beam_search(alone, [[BOS]], search, eos=[SEP])[0]
        assert [each.ids for each in together[row]] == [each.ids for each in own]
        want = rank(alone, [[BOS]], CANDIDATES)[0]
        torch.testing.assert_close(ranked[row], want, atol=1e-4, rtol=1e-4)


def test_captions_of_one_picture_share_its_memory():
    ours = network("captions")
    with torch.no_grad():
        memory = ours.memory(pixels(2))
        apart = ours.writer(memory.repeat_interleave(2, 0))
    prompts = [[BOS, 4], [BOS, 9], [BOS, 4], [BOS, 7, 8]]
    search = BeamSearch(beams=3, returned=3, max_tokens=6)
    shared = beam_search(ours.writer(memory), prompts, search, eos=[SEP])
    own = beam_search(apart, prompts, search, eos=[SEP])
    assert [[one.ids for one in each] for each in shared] == [
        [one.ids for one in each] for each in own
    ]
    found = rank(ours.writer(memory), prompts, CANDIDATES)
    torch.testing.assert_close(found, rank(apart, prompts, CANDIDATES), atol=1e-4, rtol=1e-4)
