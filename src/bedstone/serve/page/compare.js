// The tab that gives one prompt to two models at once.

import { figures, streamed } from "./api.js";
import { Code } from "./code.js";
import { el } from "./dom.js";
import { Fields, Running, given, modelChoice, sampling, submitKeys } from "./form.js";

export const compares = (card) => card.capabilities.includes("completion");

export function comparePanel(cards) {
  const choices = ["First model", "Second model"]
    .map((label) => modelChoice(cards, () => {}, label));
  choices[1].select.selectedIndex = Math.min(1, cards.length - 1);
  const fields = new Fields([
    { name: "prompt", label: "Prompt", kind: "area", rows: 4, required: true,
      params: ["messages"] },
    ...sampling("max_tokens", 128),
  ]);
  const running = new Running("Compare");
  const sides = choices.map((choice) => {
    const heading = el("h3", {}, choice.card().id);
    const text = el("p", { class: "text" });
    const note = el("p", { class: "hint" });
    const fault = el("p", { class: "fault", role: "alert" });
    const code = new Code();
    choice.select.addEventListener("change", () => { heading.textContent = choice.card().id; });
    const node = el("section", { class: "result" },
      heading, el("div", { class: "output", "aria-live": "polite" }, text), fault, note, code.node);
    return { choice, text, note, fault, code, node };
  });
  const form = el("form", { novalidate: true },
    el("div", { class: "grid" }, choices.map((each) => each.node)),
    fields.nodes, fields.general, running.node);

  async function one(side, values, signal) {
    const card = side.choice.card();
    const { prompt, max_tokens: most, ...options } = values;
    const talks = card.capabilities.includes("chat");
    const path = talks ? "chat/completions" : "completions";
    const own = talks
      ? { messages: [{ role: "user", content: prompt }], max_completion_tokens: most }
      : { prompt, max_tokens: most };
    const body = given({ model: card.id, ...own, ...options });
    side.code.show(path, body);
    side.text.textContent = "";
    side.fault.textContent = "";
    side.note.textContent = "Writing …";
    try {
      const known = await streamed(path, body, signal, (piece) => side.text.append(piece));
      side.note.textContent = figures(known);
    } catch (error) {
      side.note.textContent = error.name === "AbortError" ? "Stopped." : "";
      if (error.name !== "AbortError") side.fault.textContent = error.message;
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    running.run(async (signal) => {
      const values = fields.values();
      if (values) await Promise.all(sides.map((side) => one(side, values, signal)));
    }, (error) => fields.fail(error));
  });
  submitKeys(form, fields.inputs.prompt);
  const pair = el("div", { class: "pair" }, sides.map((side) => side.node));
  return el("div", { class: "compare" }, form, pair);
}
