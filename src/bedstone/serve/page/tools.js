// Tabs of one request and one answer: what is asked, of which model, and how the answer is shown.

import { figures, post, streamed } from "./api.js";
import { Code } from "./code.js";
import { bars, el, fresh, marked, picture } from "./dom.js";
import { Fields, Running, given, modelChoice, sampling, submitKeys } from "./form.js";

const does = (task) => (card) => card.tasks.includes(task);
// A decoder does some tasks by its prompt.
const prompts = (task) => (card) => does(task)(card) || card.prompted_tasks.includes(task);
const can = (ability) => (card) => card.capabilities.includes(ability);

const line = (name, label, more = {}) => ({ name, label, kind: "line", ...more });
const area = (name, label, more = {}) => ({ name, label, kind: "area", ...more });
const number = (name, label, more = {}) => ({ name, label, kind: "number", ...more });
const whole = (name, label, more = {}) => number(name, label, { step: 1, min: 1, ...more });
const NEEDED = { required: true };
const FOLDED = { more: true };

const TEXT = area("inputs", "Text", { ...NEEDED, params: ["text", "the text"] });
const LABELS = { name: "candidate_labels", label: "Labels", kind: "list", rows: 3, ...NEEDED,
  hint: "Several, with commas between, or one a line.", params: ["labels"] };
const IMAGE = { name: "inputs", label: "Image", kind: "image", ...NEEDED,
  missing: "Choose an image first.", params: ["image", "the image"] };
const LANGUAGES = [
  line("src_lang", "From language",
    { example: "en", hint: "A code; leave it out where the model has one pair." }),
  line("tgt_lang", "To language", { example: "de" }),
];
const LONGEST = whole("max_new_tokens", "Most new tokens", FOLDED);
const SEED = whole("seed", "Seed", { ...FOLDED, min: 0 });
const DRAWN = [
  whole("num_images_per_prompt", "Images", { max: 10, value: 1 }),
  whole("num_inference_steps", "Steps", FOLDED),
  number("guidance_scale", "Guidance", { ...FOLDED, min: 0, step: 0.5 }),
  SEED,
  whole("return_steps", "Steps to show",
    { ...FOLDED, min: 0, max: 16, hint: "How the image came to be; a DALL-E has none." }),
];

/** A request of a task. */
function task(name, more = {}) {
  return (card, values) => {
    const { inputs, ...options } = { ...values, ...more };
    const image = inputs && inputs.url ? inputs : null;
    return {
      path: `tasks/${name}`,
      body: given({ model: card.id, inputs: image ? image.url : inputs, ...options }),
      files: image ? new Map([[image.url, image.name]]) : new Map(),
    };
  };
}

/** A task whose input is an object. */
function rowTask(name, ...keys) {
  return (card, values) => {
    const row = Object.fromEntries(keys.map((key) => [key, values[key]]));
    const rest = Object.entries(values).filter(([key]) => !keys.includes(key));
    const made = task(name)(card, { ...Object.fromEntries(rest), inputs: row });
    if (row.image) {
      made.files = new Map([[row.image.url, row.image.name]]);
      made.body.inputs = { ...row, image: row.image.url };
    }
    return made;
  };
}

/** A search of an index, by words or by an image. */
function searched(card, values) {
  const { image, ...rest } = values;
  return {
    path: "search",
    body: given({ model: card.id, ...rest, image: image ? image.url : null }),
    files: image ? new Map([[image.url, image.name]]) : new Map(),
  };
}

const named = (rows) => bars(rows.map((each) => [each.label, each.score]));
const written = (key) => (results) => el("div", {},
  [results].flat().map((each) => el("p", { class: "text" }, each[key] || "(nothing)")));
const ranked = (key, said) => (results) => bars(
  [results].flat().map((each) => [each[key], each.score ?? null]), said);
const cosine = (score) => score.toFixed(3);

function gallery(images) {
  return el("ul", { class: "gallery" }, images.map(({ url, alt, note, steps = [] }) => {
    const strip = steps.map((each, at) => picture(each, `step ${at + 1} of ${steps.length}`));
    const label = { class: "strip", role: "group", "aria-label": "Steps of drawing" };
    const row = el("div", label, strip);
    const columns = Math.ceil(strip.length / Math.ceil(strip.length / 8));  // rows of one length
    row.style.gridTemplateColumns = `repeat(${columns || 1}, 1fr)`;
    return el("li", {}, el("figure", {}, picture(url, alt), strip.length ? row : null,
      el("figcaption", {}, note, " ", el("a", { href: url, download: "image.png" }, "Save"))));
  }));
}

const drawn = (results) => gallery([results].flat().map((each) => ({
  url: each.image,
  alt: String(each.prompt ?? "what was drawn"),
  note: `seed ${each.seed}`,
  steps: each.steps,
})));

/** The words for each mask, where a text has several. */
function filled(results) {
  const groups = Array.isArray(results[0]) ? results : [results];
  return el("div", {}, groups.map(
    (rows) => bars(rows.map((each) => [each.token_str, each.score]))));
}

/** Rows of an index: what each column says. */
function rows(results) {
  if (!results.length) return el("p", { class: "hint" }, "Nothing was found.");
  return el("ol", { class: "rows" }, results.map((each) => el("li", {},
    el("p", { class: "heading" }, el("strong", {}, String(each.key)), cosine(each.score)),
    el("dl", {}, Object.entries(each.columns || {}).filter(([, value]) => value !== null)
      .map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])))));
}

function tagged(results, values) {
  const spans = results.map((each) => ({ ...each, label: each.entity_group }));
  return el("div", {}, marked(values.inputs, spans),
    spans.length ? null : el("p", { class: "hint" }, "Nothing was tagged."));
}

function answered(results, values) {
  const there = results.answer && results.start !== null;
  return el("div", {},
    el("p", { class: "text answer" }, results.answer || "No answer was found."),
    marked(values.context, there ? [{ start: results.start, end: results.end, label: "" }] : []),
    el("p", { class: "hint" }, `score ${results.score.toFixed(3)}`,
      results.start === null ? "; the text doesn't hold it word for word" : ""));
}

/**
 * The tabs. Of each action: `fits` a model's card, `fields` of it, `request(card, values)`, and
 * `show(results, values)`, an element; one that `streams` has `around`.
 */
export const TOOLS = [
  { id: "complete", title: "Complete", send: "Complete", actions: [
    { name: "Continue a text", fits: can("completion"), streams: true,
      fields: (card) => [
        area("prompt", "Text", { ...NEEDED, rows: 6 }),
        can("insert")(card) ? area("suffix", "Text behind the gap", { rows: 3,
          hint: "The model writes what stands between both; leave it out to continue the text." })
          : null,
        ...sampling("max_tokens", 128),
      ],
      request: (card, values) => (
        { path: "completions", body: given({ model: card.id, ...values }), files: new Map() }),
      around: (values) => [values.prompt, values.suffix || ""] },
  ] },
  { id: "classify", title: "Classify", send: "Classify", actions: [
    { name: "Labels of the model", fits: does("text-classification"), fields: () => [TEXT],
      request: task("text-classification", { top_k: 20 }), show: (found) => named(found.flat()) },
    { name: "Labels of your own", fits: prompts("zero-shot-classification"),
      fields: () => [TEXT, LABELS], request: task("zero-shot-classification"),
      show: ({ labels, scores }) => bars(labels.map((label, at) => [label, scores[at]])) },
    { name: "Fill in a mask", fits: does("fill-mask"), request: task("fill-mask"), show: filled,
      fields: () => [{ ...TEXT,
        hint: "Put the model's mask, such as [MASK] or <mask>, where a word is missing." }] },
  ] },
  { id: "tag", title: "Tag", send: "Tag", actions: [
    { name: "Entities", fits: does("token-classification"), fields: () => [TEXT], show: tagged,
      request: task("token-classification", { aggregation_strategy: "simple" }) },
  ] },
  { id: "ask", title: "Ask a text", send: "Ask", actions: [
    { name: "Question", fits: prompts("question-answering"), show: answered,
      fields: () => [
        area("context", "Text", { ...NEEDED, rows: 7, params: ["the context"] }),
        line("question", "Question", { ...NEEDED, params: ["the question"] }),
      ],
      request: rowTask("question-answering", "question", "context") },
  ] },
  { id: "rewrite", title: "Translate, sum up", send: "Write", actions: [
    { name: "Translate", fits: prompts("translation"), fields: () => [TEXT, ...LANGUAGES, LONGEST],
      request: task("translation"), show: written("translation_text") },
    { name: "Sum up", fits: prompts("summarization"), request: task("summarization"),
      fields: () => [{ ...TEXT, rows: 8 }, LONGEST], show: written("summary_text") },
    { name: "Text to text", fits: does("text2text-generation"), fields: () => [TEXT, LONGEST],
      request: task("text2text-generation"), show: written("generated_text") },
  ] },
  { id: "see", title: "See", send: "Look", actions: [
    { name: "Describe an image", fits: does("image-to-text"), fields: () => [IMAGE, LONGEST],
      request: task("image-to-text"), show: written("generated_text") },
    { name: "Ask about an image", fits: does("visual-question-answering"), show: ranked("answer"),
      fields: () => [{ ...IMAGE, name: "image", params: ["inputs"] },
        line("question", "Question", NEEDED)],
      request: rowTask("visual-question-answering", "image", "question") },
    { name: "Labels of your own", fits: does("zero-shot-image-classification"), show: named,
      fields: () => [IMAGE, LABELS], request: task("zero-shot-image-classification") },
    { name: "Labels of the model", fits: does("image-classification"), show: named,
      fields: () => [IMAGE], request: task("image-classification", { top_k: 20 }) },
    { name: "Compare with texts", fits: does("image-text-matching"), show: ranked("text"),
      fields: () => [IMAGE, { ...LABELS, name: "text", label: "Texts" }],
      request: task("image-text-matching") },
  ] },
  { id: "find", title: "Find", send: "Find", actions: [
    { name: "Images of an index", fits: (card) => card.indexes.length > 0, show: rows,
      fields: (card) => [
        { name: "index", label: "Index", kind: "choice", choices: card.indexes },
        line("query", "What to find", { hint: "Words, or else an image." }),
        { ...IMAGE, name: "image", required: false },
        whole("count", "How many", { value: 10 }),
      ],
      request: searched },
    { name: "The nearest texts", fits: does("semantic-search"), show: ranked("text", cosine),
      fields: () => [
        { name: "texts", label: "Texts to search", kind: "list", rows: 7, ...NEEDED,
          hint: "One a line." },
        line("inputs", "What to find", { ...NEEDED, params: ["the query"] }),
        whole("top_k", "How many", { value: 5 }),
      ],
      request: task("semantic-search") },
  ] },
  { id: "imagine", title: "Imagine", send: "Draw", actions: [
    { name: "From words", fits: does("text-to-image"), request: task("text-to-image"), show: drawn,
      fields: () => [area("inputs", "Prompt", { ...NEEDED, rows: 3 }), ...DRAWN,
        line("negative_prompt", "Not to be drawn", FOLDED)] },
    { name: "From a class", fits: does("class-to-image"), request: task("class-to-image"),
      show: drawn,
      fields: () => [line("inputs", "Class", { ...NEEDED, hint: "Its name or number." }),
        ...DRAWN] },
    { name: "Anything", fits: does("unconditional-image-generation"), show: drawn,
      fields: () => DRAWN, request: task("unconditional-image-generation") },
    { name: "From an image", fits: does("image-to-image"), show: drawn,
      fields: (card) => [IMAGE,
        does("unconditional-image-generation")(card) ? null : line("prompt", "Prompt", NEEDED),
        number("strength", "Strength", { min: 0, max: 1, step: 0.1, value: 0.6,
          hint: "1 keeps nearly nothing of the image." }),
        ...DRAWN],
      request: task("image-to-image") },
    { name: "Like an image", fits: does("image-variation"), show: drawn,
      fields: () => [IMAGE, ...DRAWN], request: task("image-variation") },
  ] },
];

/** A tab's panel. */
export function toolPanel(tool, cards) {
  let fields = null;
  let action = null;
  let request = null;
  const code = new Code();
  const running = new Running(tool.send);
  const output = el("div", { class: "output", "aria-live": "polite" });
  const note = el("p", { class: "hint" });
  const inputs = el("div", { class: "inputs" });
  const id = fresh("action");
  const select = el("select", { id });
  const heading = el("label", { for: id }, "What to do");
  const chooser = el("div", { class: "field" }, heading, select);
  const model = modelChoice(cards, () => offer());
  const form = el("form", { novalidate: true },
    el("div", { class: "grid" }, model.node, chooser), inputs, running.node);

  function offer() {
    const before = action && action.name;
    const fitting = tool.actions.filter((each) => each.fits(model.card()));
    select.replaceChildren(...fitting.map((each) => el("option", { value: each.name }, each.name)));
    if (fitting.some((each) => each.name === before)) select.value = before;
    chooser.hidden = tool.actions.length < 2;
    build();
  }

  /** Whether a text has begun to be written. */
  function begun() {
    const grown = output.querySelector("ins");
    return Boolean(grown && grown.textContent);
  }

  function build() {
    output.replaceChildren();
    note.textContent = "";
    code.node.hidden = true;
    const kept = fields ? fields.kept() : {};
    action = tool.actions.find((each) => each.name === select.value);
    fields = new Fields(action.fields(model.card()).filter((each) => each), kept);
    inputs.replaceChildren(...fields.nodes, fields.general);
    for (const area of inputs.querySelectorAll("textarea")) submitKeys(form, area);
  }

  async function run(signal) {
    const values = fields.values();
    if (!values) return;
    output.replaceChildren(el("p", { class: "hint" }, "Working …"));
    note.textContent = "";
    const own = action;
    request = own.request(model.card(), values);
    code.show(request.path, request.body, request.files);
    if (own.streams) {
      await write(own, values, signal);
      return;
    }
    const began = performance.now();
    const answer = await post(request.path, request.body, signal);
    output.replaceChildren(own.show(answer.results || answer.data, values));
    note.textContent = figures({ seconds: (performance.now() - began) / 1000, first: null });
  }

  /** A text that grows between what stands around it. */
  async function write(own, values, signal) {
    const [before, behind] = own.around(values);
    const middle = el("ins", {});
    output.replaceChildren(el("p", { class: "text" }, before, middle, behind));
    const known = await streamed(request.path, request.body, signal, (text) => middle.append(text));
    note.textContent = figures(known);
  }

  function failed(error) {
    if (!begun()) output.replaceChildren();
    fields.fail(error);
  }

  function stopped() {
    if (!begun()) output.replaceChildren();
    note.textContent = "Stopped.";
  }

  select.addEventListener("change", build);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    running.run(run, failed, stopped);
  });
  offer();
  return el("div", { class: "columns" }, form,
    el("section", { class: "result", "aria-label": "Answer" }, output, note, code.node));
}
