// The tab of conversations: answers as they are written, which can be stopped.

import { figures, streamed } from "./api.js";
import { Code } from "./code.js";
import { el } from "./dom.js";
import { Fields, Running, given, modelChoice, sampling, submitKeys } from "./form.js";

export const chats = (card) => card.capabilities.includes("chat") || sees(card);
const sees = (card) => card.tasks.includes("image-text-to-text");

export function chatPanel(cards) {
  let messages = [];
  let fields = null;
  const code = new Code();
  const running = new Running("Send");
  const log = el("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: 0 });
  const note = el("p", { class: "hint", role: "status" });
  const inputs = el("div", { class: "inputs" });
  const model = modelChoice(cards, build);
  const clear = el("button", { type: "button", onclick: reset }, "New conversation");
  const undo = el("button", { type: "button", onclick: back }, "Undo");
  const form = el("form", { novalidate: true }, inputs, running.node);
  running.node.append(undo, clear);

  function build() {
    const kept = fields ? fields.kept() : {};
    fields = new Fields([
      { name: "content", label: "Message", kind: "area", rows: 3, required: true,
        missing: "Write a message first.", params: ["messages"],
        hint: "Enter sends, Shift and Enter begins a new line." },
      sees(model.card())
        ? { name: "image", label: "Image", kind: "image", params: ["image_url"] } : null,
      { name: "system", label: "System message", kind: "area", rows: 2, more: true },
      ...sampling("max_completion_tokens", 256),
    ].filter((each) => each), kept);
    inputs.replaceChildren(...fields.nodes, fields.general);
    submitKeys(form, fields.inputs.content, true);
  }

  function bubble(role, text, image = null) {
    const words = el("p", { class: "text" }, text);
    log.append(el("article", { class: role },
      el("h3", {}, role === "user" ? "You" : model.card().id),
      image ? el("img", { src: image.url, alt: image.name }) : null, words));
    log.scrollTop = log.scrollHeight;
    return words;
  }

  function reset() {
    if (running.busy) return;
    messages = [];
    log.replaceChildren();
    note.textContent = "";
    fields.inputs.content.focus();
  }

  /** Takes the last message and its answer back, the message into the form. */
  function back() {
    const last = messages.findLastIndex((each) => each.role === "user");
    if (running.busy || last < 0) return;
    fields.inputs.content.value = messages[last].text;
    messages = messages.slice(0, last);
    log.replaceChildren(...[...log.children].slice(0, last));
    note.textContent = "";
  }

  /** Messages as the API takes them, and the names of their images. */
  function asked(system) {
    const files = new Map();
    const list = messages.map(({ role, text, image }) => {
      if (!image) return { role, content: text };
      files.set(image.url, image.name);
      const seen = { type: "image_url", image_url: { url: image.url } };
      return { role, content: [seen, { type: "text", text }] };
    });
    return { list: system ? [{ role: "system", content: system }, ...list] : list, files };
  }

  async function run(signal) {
    const values = fields.values();
    if (!values) return;
    const { content, image, system, ...options } = values;
    const kept = messages;
    messages = [...messages, { role: "user", text: content, image }];
    bubble("user", content, image);
    const { list, files } = asked(system);
    const body = given({ model: model.card().id, messages: list, ...options });
    fields.inputs.content.value = "";
    note.textContent = "Writing …";
    code.show("chat/completions", body, files);
    const words = bubble("assistant", "");
    let text = "";
    const piece = (each) => {
      const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      text += each;
      words.append(each);
      if (low) log.scrollTop = log.scrollHeight;
    };
    try {
      const known = await streamed("chat/completions", body, signal, piece);
      note.textContent = figures(known);
    } catch (error) {
      note.textContent = error.name === "AbortError" ? "Stopped; what was written is kept." : "";
      if (!text) {  // nothing came: the message goes back into the form
        messages = kept;
        log.lastChild.remove();
        log.lastChild.remove();
        fields.inputs.content.value = content;
        throw error;
      }
      messages.push({ role: "assistant", text });
      throw error;
    }
    messages.push({ role: "assistant", text });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    running.run(run, (error) => fields.fail(error));
  });
  build();
  return el("div", { class: "chat" }, model.node, log, note, form, code.node);
}
