"""Moderation, search, recommendations and drawing from images over HTTP."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from bedstone.errors import BedstoneError
from bedstone.serve.forms import read_form
from bedstone.serve.images import EditRequest
from bedstone.serve.indexes import check_condition, open_indexes
from bedstone.serve.wire import ApiError
from bedstone.tasks.images.engine import ImageEngine
from bedstone.tasks.moderation.policy import read_policy
from bedstone.tasks.search.index import Index, Row
from drawings import drawing
from image_models import clip_model, pictures
from served import Running, saved_decoder
from unclips import unclip

pytest.importorskip("lancedb")
POLICY = {
    "categories": {
        "violence": {"sentences": ["a star"], "threshold": 0.0, "action": "block"},
        "stars": {"sentences": ["a green star"], "threshold": 1.0, "action": "flag"},
    }
}


def data_of(image, mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.asarray(image)).convert(mode).save(data, "PNG")
    return data.getvalue()


def url_of(image) -> str:
    return f"data:image/png;base64,{base64.b64encode(data_of(image)).decode()}"


@pytest.fixture(scope="module")
def shown():
    return [np.asarray(each) for each in pictures(6, seed=4)]


@pytest.fixture(scope="module")
def server(tmp_path_factory, cache, shown):
    folder = tmp_path_factory.mktemp("models")
    clip = clip_model()
    clip.save(folder / "clip")
    drawing("text").save(folder / "draws")
    unclip().save(folder / "unclip")
    engine = ImageEngine(clip)
    with Index.create(folder / "shapes.index", engine.width, engine.name, model="clip") as index:
        rows = zip(range(6), engine.images(shown), strict=True)
        index.add([Row(f"{n}.png", v, {"price": n, "kind": "ab"[n % 2]}) for n, v in rows])
    names = ("clip", "draws", "unclip")
    sources = {name: str(folder / name) for name in names}
    sources["small"] = str(saved_decoder(folder / "small"))
    running = Running(sources, indexes=(str(folder / "shapes.index"),), policy=read_policy(POLICY))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def test_texts_and_images_are_judged_by_the_policy(client, server, shown):
    found = client.moderations.create(input=["a circle", "a star"], model="clip")
    assert [each.flagged for each in found.results] == [True, True]
    first = found.results[0]
    assert first.categories.violence and not first.categories.hate
    assert first.category_scores.hate == 0 and first.category_applied_input_types.hate == []
    assert first.action == "block" and first.categories.model_extra["stars"] is False
    parts = [
        {"type": "text", "text": "a star"},
        {"type": "image_url", "image_url": {"url": url_of(shown[0])}},
    ]
    (both,) = client.moderations.create(input=parts, model="clip").results
    assert both.category_applied_input_types.violence == ["text", "image"]
    own = {"categories": {"calm": {"sentences": ["a sea"], "threshold": 1.0}}}
    body = {"model": "clip", "input": "x", "policy": own}
    status, _, answer = server.ask("/v1/moderations", body)
    assert status == 200 and answer["results"][0]["flagged"] is False
    for changed in ({"policy": "policy.yaml"}, {"policy": {"categories": {}}}, {"input": []},
                    {"input": ""}, {"input": [3]}, {"input": parts + parts[1:]},
                    {"model": "small"}, {"input": [{"type": "x"}]}):  # fmt: skip
        status, _, answer = server.ask("/v1/moderations", {**body, **changed})
        assert status == 400, (changed, answer)


def test_policies_and_options_of_a_request_have_bounds(server):
    long = {"categories": {"calm": {"sentences": ["a sea " * 6000], "threshold": 1.0}}}
    many = {"categories": {"calm": {"sentences": [f"a sea {n}" for n in range(300)]}}}
    for policy in (long, many):
        status, _, answer = server.ask(
            "/v1/moderations", {"model": "clip", "input": "x", "policy": policy}
        )
        assert (status, answer["error"]["param"]) == (413, "policy"), answer
        status, _, answer = server.ask(
            "/v1/tasks/moderation", {"model": "clip", "inputs": "x", "policy": policy}
        )
        assert (status, answer["error"]["param"]) == (413, "policy"), answer
    body = {"model": "clip", "inputs": url_of(np.zeros((8, 8, 3), np.uint8))}
    path = "/v1/tasks/zero-shot-image-classification"
    status, _, answer = server.ask(path, {**body, "candidate_labels": ["a", "b", "a"]})
    assert status == 400 and "twice" in answer["error"]["message"], answer
    status, _, answer = server.ask(path, {**body, "candidate_labels": ["x" * (1 << 20), "b"]})
    assert (status, answer["error"]["param"]) == (413, "candidate_labels"), answer
    labels = [f"label {n}" for n in range(20_000)]
    body["inputs"] = [body["inputs"]] * 64
    status, _, answer = server.ask(path, {**body, "candidate_labels": labels})
    assert (status, answer["error"]["param"]) == (413, "inputs"), answer


def test_an_index_is_searched_by_words_and_by_an_image(server, shown):
    status, _, found = server.ask("/v1/search", {"image": url_of(shown[2]), "count": 3})
    assert status == 200, found
    assert found["data"][0]["key"] == "2.png"
    assert found["data"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert found["data"][0]["columns"] == {"price": 2, "kind": "a"}
    assert (found["index"], found["model"]) == ("shapes", "clip")
    body = {"query": "a circle", "index": "shapes", "where": "price < 2 and kind = 'b'"}
    status, _, found = server.ask("/v1/search", body)
    assert [each["key"] for each in found["data"]] == ["1.png"]
    for changed in ({"where": "price < ; 2"}, {"where": "cost < 2"}, {"where": "x" * 2000},
                    {"count": 0}, {"query": ""}, {"query": None}, {"model": "small"},
                    {"image": url_of(shown[0])}):  # fmt: skip
        status, _, answer = server.ask("/v1/search", {**body, **changed})
        assert status == 400, (changed, answer)
        assert "/" not in answer["error"]["message"].replace("base64", "")
    assert server.ask("/v1/search", {**body, "index": "/etc"})[0] == 404


def test_items_are_recommended_from_an_index(server, shown):
    body = {"model": "clip", "inputs": ["0.png", "3.png"], "top_k": 2}
    status, _, found = server.ask("/v1/tasks/similar-items", body)
    assert status == 200, found
    assert all(len(each) == 2 for each in found["results"])
    assert "0.png" not in [each["id"] for each in found["results"][0]]
    one = {**body, "inputs": {"image": url_of(shown[5])}, "index": "shapes"}
    status, _, found = server.ask("/v1/tasks/similar-items", one)
    assert status == 200, found
    assert found["results"][0]["id"] == "5.png"
    status, _, found = server.ask("/v1/tasks/complementary-items", {**body, "category": "kind"})
    assert status == 200, found
    assert found["results"][0][0]["row"]["kind"] == "b"
    for changed in ({"catalogue": [{"id": 1}]}, {"catalogue": "/etc"}, {"index": 3},
                    {"inputs": "none.png"}, {"model": "small"}):  # fmt: skip
        status, _, answer = server.ask("/v1/tasks/similar-items", {**body, **changed})
        assert status in (400, 404), (changed, answer)


def test_images_are_drawn_from_one(client, server, shown):
    mask = np.zeros((*shown[0].shape[:2], 4), np.uint8)
    mask[:8, :, 3] = 255
    files = {"image": ("a.png", data_of(shown[0]), "image/png"),
             "mask": ("m.png", data_of(mask, "RGBA"), "image/png")}  # fmt: skip
    more = {"extra_body": {"seed": 5, "steps": 2}}
    found = client.images.edit(model="draws", prompt="ink", n=2, **files, **more)
    assert [each.seed for each in found.data] == [5, 6]
    body = {"model": "draws", "prompt": "ink", "n": 2, "seed": 5, "steps": 2,
            "image": url_of(shown[0])}  # fmt: skip
    alpha = base64.b64encode(data_of(mask, "RGBA")).decode()
    body["mask"] = f"data:image/png;base64,{alpha}"
    status, _, same = server.ask("/v1/images/edits", body)
    assert status == 200, same
    assert [each["b64_json"] for each in same["data"]] == [each.b64_json for each in found.data]
    unmasked = server.ask("/v1/images/edits", {**body, "mask": None})[2]
    assert unmasked["data"] != same["data"]
    for model in ("draws", "unclip"):
        given = {"image": ("a.png", data_of(shown[1]), "image/png"), "model": model}
        (one,) = client.images.create_variation(**given, **more).data
        assert Image.open(io.BytesIO(base64.b64decode(one.b64_json))).size[0] > 1
    for changed in ({"image": "http://x/a.png"}, {"image": None}, {"prompt": None},
                    {"response_format": "url"}, {"model": "small"}, {"strength": 2},
                    {"image": [url_of(shown[0])] * 2}, {"stream": True}):  # fmt: skip
        status, _, answer = server.ask("/v1/images/edits", {**body, **changed})
        assert status == 400, (changed, answer)


FORM = "multipart/form-data; boundary=xx"


def part(head: str, content: bytes = b"1") -> bytes:
    return b"--xx\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content


def test_a_form_is_read_whole_or_refused(server):
    body = b"\r\n".join([
        part('name="image"; filename="a"', b"\x00\r\n\xff--xy"), part('name="n"', b"2"),
        part('name="strength"', b"0.5"), part('name="prompt"', b"7"), b"--xx--\r\n",
    ])  # fmt: skip
    found = read_form(body, FORM, EditRequest)
    assert found == {"image": b"\x00\r\n\xff--xy", "n": 2, "strength": 0.5, "prompt": "7"}
    twice = b"\r\n".join([part('name="n"'), part('name="n"'), b"--xx--"])
    many = b"\r\n".join([part(f'name="n{n}"') for n in range(70)] + [b"--xx--"])
    for wrong in (b"", b"--xx", body[:-6], body.replace(b"--xx--", b"--xz--"), twice, many,
                  part('filename="a"') + b"\r\n--xx--", part('name="n"', b"\xff") + b"\r\n--xx--",
                  b"--xx\r\n\r\n1\r\n--xx--"):  # fmt: skip
        with pytest.raises(ApiError):
            read_form(wrong, FORM, EditRequest)
        status, _, _ = server.ask("/v1/images/edits", wrong, method="POST", Content_Type=FORM)
        assert status == 400
    with pytest.raises(ApiError, match="boundary"):
        read_form(body, "multipart/form-data", EditRequest)
    assert server.ask("/v1/completions", body, Content_Type=FORM)[0] == 415
    evil = {"Content_Type": FORM, "Origin": "https://evil.example"}
    assert server.ask("/v1/images/edits", body, **evil)[0] == 403


def test_an_index_of_a_model_that_is_not_served_is_refused(server, tmp_path):
    with Index.create(tmp_path / "other", 8, "clip-0123") as index:
        index.add([Row("a", np.ones(8))])
    with pytest.raises(BedstoneError, match="isn't served"):
        open_indexes([str(tmp_path / "other")], server.models)
    with pytest.raises(BedstoneError, match="no such index"):
        open_indexes([str(tmp_path / "none")], server.models)


@pytest.mark.parametrize(
    "where, message",
    [
        ("not (" * 40 + "1=1" + ")" * 40, "nested too deeply"),
        ("repeat('a', 1000000000) = 'b'", "calls repeat"),
        ("not not not not not not not not not a = 1", "nested too deeply"),
    ],
)
def test_conditions_that_could_cost_much_are_refused(where, message):
    with pytest.raises(BedstoneError, match=message):
        check_condition(where)


def test_usual_conditions_are_taken():
    check_condition("(price < 20 and colour in ('red (dark)', 'blue')) or name like 'repeat(%'")
