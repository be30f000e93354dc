"""The playground in a real browser: every tab, by mouse and keyboard, at two sizes, offline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import image_models
import image_text_models
from bedstone.models.heads import HeadConfig
from drawings import drawing
from encoder_decoders import small_model
from served import KEY, Running, saved_decoder
from small_models import NLI, TAGS, model

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<img src=x onerror=document.title='broken'>"
SHOTS = os.environ.get("BEDSTONE_SHOTS")  # a folder to keep pictures of the page in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium of the system"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("models")
    made = {
        "labels": model(HeadConfig("sequence", ("bad", HOSTILE, "good"))),
        "nli": model(NLI),
        "tags": model(TAGS),
        "spans": model(HeadConfig("spans")),
        "masks": model(HeadConfig("language")),
        "states": model(HeadConfig("states")),
        "clip": image_models.clip_model(),
        "eyes": image_models.labelled_model(),
        "captions": image_text_models.told_model(),
        "sees": image_text_models.sighted_model(),
        "draw": drawing("text"),
        "classes": drawing("class"),
        "translates": small_model(),
    }
    found = {name: str(each.save(folder / name)) for name, each in made.items()}
    for name in ("first", "second"):
        found[name] = str(saved_decoder(folder / name))
    return {HOSTILE: found["first"], **found}


@pytest.fixture(scope="module")
def server(sources):
    running = Running(sources, keys={"one": KEY}, playground=True)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page of the playground, and all that it asked for and complained of."""

    def __init__(self, browser, server, width=1280, scheme="light", key=KEY):
        self.context = browser.new_context(
            viewport={"width": width, "height": 860}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.asked, self.said = [], []
        self.page.on("request", lambda each: self.asked.append(each.url))
        self.page.on("pageerror", lambda each: self.said.append(str(each)))
        self.page.on(
            "console", lambda each: self.said.append(each.text) if each.type == "error" else None
        )
        self.server, self.width, self.scheme = server, width, scheme
        self.page.goto(f"{server.url}/playground")
        if key:
            self.page.get_by_label("API key").fill(key)
            self.page.keyboard.press("Enter")
            self.page.get_by_role("tab").first.wait_for()

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()
        return self.page.get_by_role("tabpanel")

    def shot(self, name):
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= self.width, f"{name}: {wide} pixels on a screen of {self.width}"
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            file = Path(SHOTS) / f"{name}-{self.width}-{self.scheme}.png"
            self.page.screenshot(path=str(file), full_page=True)

    def close(self):
        """Ends the visit; nothing but the server may have been asked, and nothing have failed."""
        outside = [
            each for each in self.asked
            if not each.startswith((f"{self.server.url}/", "data:image/", "blob:"))
        ]  # fmt: skip
        assert outside == []
        refused = [each for each in self.said if "status of 4" not in each]
        assert refused == []
        assert self.page.title() == "Bedstone playground"
        self.context.close()


@pytest.fixture
def visit(browser, server):
    visits = []

    def begin(**more):
        visits.append(Visit(browser, server, **more))
        return visits[-1]

    yield begin
    for each in visits:
        each.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a photo's $HOME.png"
    Image.fromarray(image_models.pictures(1, size=80)[0]).save(path)
    return path


def send(panel, **fields):
    """Fills a form in and waits for the answer."""
    for label, value in fields.items():
        panel.get_by_label(label.replace("_", " "), exact=True).fill(value)
    panel.locator("button[type=submit]").click()
    panel.locator("button[type=submit]").wait_for()


def pick(panel, model=None, action=None):
    if model:
        panel.get_by_label("Model", exact=True).select_option(model)
    if action:
        panel.get_by_label("What to do").select_option(action)


def run_code(panel, photo):
    """Runs what the page says that was done, as a shell and as Python do; what each printed."""
    panel.locator("details.code > summary").first.click()
    shell, python = [each.text_content() for each in panel.locator("details.code code").all()[:2]]
    environment = {**os.environ, "BEDSTONE_API_KEY": KEY}
    printed = []
    for command in (["bash", "-c", shell], [sys.executable, "-c", python]):
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=photo.parent, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert '"error"' not in done.stdout
        printed.append(done.stdout)
    panel.locator("details.code > summary").first.click()
    return printed


def test_the_key_is_needed_and_kept_in_memory_alone(visit):
    seen = visit(key="")
    page = seen.page
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    seen.shot("key")
    assert page.get_by_role("tab").count() == 0
    dialog.get_by_label("API key").fill("wrong-key-0123456789")
    page.keyboard.press("Enter")
    dialog.get_by_text("doesn't know this key").wait_for()
    dialog.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_role("tab").first.wait_for()
    assert not dialog.is_visible()
    stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert page.evaluate(stored) == '[{},{},""]'
    page.reload()
    page.get_by_role("dialog").wait_for()


def test_tabs_are_those_that_models_have_and_move_by_keys(visit):
    seen = visit()
    names = [each.text_content() for each in seen.page.get_by_role("tab").all()]
    assert names == [
        "Chat", "Complete", "Classify", "Tag", "Ask a text", "Translate, sum up", "See", "Find",
        "Imagine", "Compare",
    ]  # fmt: skip
    seen.page.get_by_role("tab", name="Chat").focus()
    seen.page.keyboard.press("ArrowRight")
    assert seen.page.evaluate("document.activeElement.textContent") == "Complete"
    seen.page.keyboard.press("End")
    assert seen.page.evaluate("document.activeElement.textContent") == "Compare"
    seen.page.keyboard.press("Home")
    seen.page.keyboard.press("Tab")  # into the panel
    assert seen.page.evaluate("!!document.activeElement.closest('[role=tabpanel]')")
    assert seen.page.url.endswith("#chat")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_conversation(visit, width, scheme, photo):
    seen = visit(width=width, scheme=scheme)
    panel = seen.tab("Chat")
    pick(panel, "first")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Most new tokens").fill("12")
    panel.get_by_label("Seed").fill("5")
    panel.get_by_label("Message", exact=True).fill(HOSTILE)
    panel.get_by_label("Message", exact=True).press("Enter")
    panel.locator("article.assistant").wait_for()
    panel.get_by_text("tokens/s").wait_for()
    assert panel.locator("article.user .text").text_content() == HOSTILE
    assert panel.locator("article img").count() == 0
    said = panel.locator("article.assistant .text").text_content()
    assert said.strip()
    printed = run_code(panel, photo)
    assert printed[1].strip() == said.strip()
    panel.get_by_label("Message", exact=True).fill("and then?")
    panel.get_by_role("button", name="Send").click()
    panel.locator("article").nth(3).wait_for()
    panel.get_by_text("tokens/s").wait_for()
    seen.shot("chat")
    panel.get_by_role("button", name="Undo").click()
    assert panel.locator("article").count() == 2
    assert panel.get_by_label("Message", exact=True).input_value() == "and then?"
    panel.get_by_role("button", name="New conversation").click()
    assert panel.locator("article").count() == 0


def test_an_answer_is_stopped_and_its_work_ends(visit, server):
    seen = visit()
    panel = seen.tab("Chat")
    pick(panel, "second")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Most new tokens").fill("450")
    panel.get_by_label("Seed").fill("5")
    panel.get_by_label("Message", exact=True).fill("a red cat")
    seen.page.evaluate(  # at the first text: the small model is quicker than a driven click
        """() => {
            const log = document.querySelector(".log");
            new MutationObserver(() => {
                const words = log.querySelector("article.assistant .text");
                if (words && words.textContent) document.querySelector(".chat .stop").click();
            }).observe(log, { childList: true, subtree: true });
        }"""
    )
    panel.get_by_role("button", name="Send").click()
    panel.get_by_text("Stopped; what was written is kept.").wait_for()
    panel.get_by_role("button", name="Send").wait_for()
    assert server.idle()
    said = panel.locator("article.assistant .text").text_content()
    assert 0 < len(said) < 300


def test_a_hostile_answer_stays_text(visit):
    seen = visit()
    answer = "".join(
        f'data: {{"choices": [{{"delta": {{"content": "{piece}"}}, "finish_reason": null}}]}}\n\n'
        for piece in (HOSTILE, "<script>document.title=1</script>", "[a](javascript:alert(1))")
    )
    seen.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            body=f"{answer}data: [DONE]\n\n", content_type="text/event-stream"
        ),
    )
    panel = seen.tab("Chat")
    panel.get_by_label("Message", exact=True).fill("hello")
    panel.get_by_role("button", name="Send").click()
    panel.get_by_text("[a](javascript").wait_for()
    assert panel.locator("article.assistant .text").evaluate("each => each.children.length") == 0
    assert panel.locator("article.assistant h3").text_content() == HOSTILE  # the model's name
    made = "try { document.body.innerHTML = '<b>'; 'made' } catch (error) { error.name }"
    assert seen.page.evaluate(made) == "TypeError"  # Trusted Types forbid it
    seen.said.clear()
    seen.asked[:] = [each for each in seen.asked if "onerror" not in each]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_tabs_of_texts(visit, width, scheme, photo):
    seen = visit(width=width, scheme=scheme)
    panel = seen.tab("Complete")
    pick(panel, "first")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Most new tokens").fill("10")
    panel.get_by_label("Seed").fill("3")
    send(panel, Text="a red cat")
    panel.get_by_text("tokens/s").wait_for()
    said = panel.locator(".output ins").text_content()
    assert said
    assert run_code(panel, photo)[1].rstrip("\n").strip() == said.strip()
    seen.shot("complete")

    panel = seen.tab("Classify")
    pick(panel, "labels", "Labels of the model")
    send(panel, Text='a dull film, it\'s "slow"')
    panel.locator(".bars li").nth(2).wait_for()
    names = [each.text_content() for each in panel.locator(".bars .name").all()]
    assert sorted(names) == sorted(["bad", HOSTILE, "good"])
    assert panel.locator(".output img").count() == 0
    assert all("good" in each for each in run_code(panel, photo))
    seen.shot("classify")
    pick(panel, "nli", "Labels of your own")
    assert panel.get_by_label("Text", exact=True).input_value().startswith("a dull film")
    send(panel, Labels="sport, weather")
    panel.locator(".bars li").nth(1).wait_for()
    pick(panel, "masks", "Fill in a mask")
    send(panel, Text="the [MASK] barked")
    panel.locator(".bars li").nth(1).wait_for()

    panel = seen.tab("Tag")
    send(panel, Text="😀 Zoë Müller flew from Paris to New York")
    panel.locator(".marked").wait_for()
    text = panel.locator(".marked").evaluate(
        "each => [...each.childNodes].map(one => one.firstChild ? one.firstChild.data : one.data)"
        ".join('')"
    )
    assert text == "😀 Zoë Müller flew from Paris to New York"
    panel.locator("details.code > summary").click()
    seen.shot("tag")

    panel = seen.tab("Ask a text")
    pick(panel, "spans")
    context = "😀 Zoë Müller flew from Paris to New York."
    send(panel, Text=context, Question="Where from?")
    panel.locator(".marked mark").wait_for()
    assert panel.locator(".marked").text_content() == context
    assert panel.locator("mark").text_content() == panel.locator(".answer").text_content()
    run_code(panel, photo)
    seen.shot("ask")

    panel = seen.tab("Translate, sum up")
    pick(panel, "translates", "Translate")
    send(panel, Text="a small red cat")
    panel.locator(".output .text").first.wait_for()
    seen.shot("rewrite")

    panel = seen.tab("Find")
    pick(panel, "states")
    send(panel, Texts_to_search="a red cat\nan evening in Bremen\nfar too long",
         What_to_find="a small cat")  # fmt: skip
    panel.locator(".bars li").nth(2).wait_for()
    run_code(panel, photo)
    seen.shot("find")

    panel = seen.tab("Compare")
    panel.get_by_label("First model").select_option("first")
    panel.get_by_label("Second model").select_option("second")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Most new tokens").fill("12")
    panel.get_by_label("Seed").fill("1")
    send(panel, Prompt="go")
    panel.get_by_text("tokens/s").nth(1).wait_for()
    one, two = [each.text_content() for each in panel.locator(".output .text").all()]
    assert one == two != ""  # both have the same weights
    seen.shot("compare")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_tabs_of_images(visit, width, scheme, photo):
    seen = visit(width=width, scheme=scheme)
    panel = seen.tab("See")
    pick(panel, "clip", "Labels of your own")
    send(panel, Labels="a red circle, a blue square")
    panel.get_by_text("Choose an image first.").wait_for()
    panel.get_by_label("Image", exact=True).set_input_files(photo)
    panel.get_by_alt_text("the chosen image").wait_for()
    send(panel)
    panel.locator(".bars li").nth(1).wait_for()
    assert all("a red circle" in each for each in run_code(panel, photo))
    seen.shot("see")
    pick(panel, "captions", "Describe an image")
    send(panel)  # the image is still there
    panel.locator(".output .text").first.wait_for()
    pick(panel, "sees", "Ask about an image")
    panel.get_by_label("Image", exact=True).set_input_files(photo)
    send(panel, Question="how many?")
    panel.locator(".bars li").first.wait_for()
    assert all("answer" in each for each in run_code(panel, photo))
    pick(panel, "eyes", "Labels of the model")
    panel.get_by_label("Image", exact=True).set_input_files(photo)
    send(panel)
    panel.locator(".bars li").nth(2).wait_for()

    panel = seen.tab("Imagine")
    pick(panel, "draw", "From words")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Seed").fill("4")
    panel.get_by_label("Steps to show").fill("3")
    send(panel, Prompt="a red circle", Images="2")
    panel.locator(".gallery .strip").nth(1).wait_for()
    assert panel.locator(".gallery img").first.get_attribute("alt") == "a red circle"
    assert panel.locator(".strip img").count() == 6
    with seen.page.expect_download() as saved:
        panel.get_by_role("link", name="Save").first.click()
    assert Image.open(saved.value.path()).size == (8, 8)
    run_code(panel, photo)
    assert (photo.parent / "1.png").stat().st_size > 50
    seen.shot("imagine")
    pick(panel, "classes", "From a class")
    send(panel, Class="dog", Images="1")
    panel.locator(".gallery img").first.wait_for()
    pick(panel, "draw", "From an image")
    panel.get_by_label("Image", exact=True).set_input_files(photo)
    send(panel, Prompt="a red circle")
    panel.locator(".gallery img").first.wait_for()
    run_code(panel, photo)

    panel = seen.tab("Chat")
    pick(panel, "sees")
    panel.get_by_label("Image", exact=True).set_input_files(photo)
    panel.get_by_label("Message", exact=True).fill("how many green stars are there?")
    panel.get_by_role("button", name="Send").click()
    panel.locator("article.assistant").wait_for()
    panel.locator("article.user img").wait_for()


def test_an_index_is_searched(visit, photo):
    """What the page asks and shows; the answer is the test's own."""
    seen = visit(key="")
    card = {"id": "clip", "indexes": ["photos", "maps"]}
    asked = []

    def answer(route):
        asked.append(route.request.post_data_json)
        row = {"key": "a.jpg", "score": 0.25, "columns": {"title": HOSTILE, "year": 1999}}
        route.fulfill(json={"object": "list", "data": [row]})

    seen.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [card]}))
    seen.page.route("**/v1/search", answer)
    seen.page.get_by_label("API key").fill(KEY)
    seen.page.keyboard.press("Enter")
    panel = seen.page.get_by_role("tabpanel")
    panel.get_by_label("Index").select_option("maps")
    send(panel, What_to_find="a river")
    panel.locator(".rows li").wait_for()
    assert asked == [{"model": "clip", "index": "maps", "query": "a river", "count": 10}]
    said = panel.locator(".rows").inner_text()
    assert HOSTILE in said
    assert "0.250" in said
    panel.get_by_label("Image", exact=True).set_input_files(photo)
    send(panel, What_to_find="")
    panel.locator(".rows li").wait_for()
    assert asked[1]["image"].startswith("data:image/png;base64,")
    assert "query" not in asked[1]
    seen.shot("index")


def test_faults_stand_beside_their_field(visit, server):
    seen = visit()
    panel = seen.tab("Imagine")
    pick(panel, "classes", "From a class")
    send(panel, Class="unicorn")
    panel.locator(".fault:not(:empty)").first.wait_for()
    panel = seen.tab("Complete")
    pick(panel, "first")
    send(panel)
    field = panel.get_by_label("Text", exact=True)
    assert field.get_attribute("aria-invalid") == "true"
    assert seen.page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    assert panel.get_by_text("This is needed.").is_visible()
    panel.get_by_text("Settings").click()
    send(panel, Text="a cat", Temperature="9")
    heat = panel.get_by_label("Temperature")
    assert heat.get_attribute("aria-invalid") == "true"
    said = heat.evaluate(
        "each => document.getElementById(each.getAttribute('aria-describedby').split(' ')[0])"
        ".textContent"
    )
    assert "temperature" in said
    seen.shot("fault")
    server_stopped = "The server can't be reached"
    seen.page.route("**/v1/completions", lambda route: route.abort())
    send(panel, Temperature="1")
    panel.get_by_text(server_stopped).wait_for()
    seen.said.clear()
