// Forms: fields with labels, their values, and what the server says of them.

import { el, fresh } from "./dom.js";

/**
 * The fields of a form.
 *
 * A field is { name, label, kind, value, hint, min, max, step, rows, choices, required, more,
 * params }: its kind is area, line, list (lines or commas), number, choice or image; `more` puts it
 * among the settings, which are folded; `params` are other names by which an error may name it.
 */
export class Fields {
  constructor(fields, kept = {}) {
    this.fields = fields;
    this.inputs = {};
    this.faults = {};
    this.images = {};
    const blocks = fields.map((field) => [field, this.#field(field, kept[field.name])]);
    const of = (more) => blocks.filter(([field]) => Boolean(field.more) === more)
      .map(([, block]) => block);
    const settings = of(true);
    this.general = el("p", { class: "fault", role: "alert" });
    this.settings = settings.length
      ? el("details", { class: "settings" }, el("summary", {}, "Settings"),
        el("div", { class: "grid" }, settings))
      : null;
    this.nodes = [...of(false), this.settings].filter((each) => each);
  }

  #field(field, kept) {
    const id = fresh("field");
    const described = `${id}-fault${field.hint ? ` ${id}-hint` : ""}`;
    const value = typeof kept === "string" ? kept : field.value;
    const common = { id, "aria-describedby": described, placeholder: field.example };
    let input;
    if (field.kind === "area" || field.kind === "list") {
      input = el("textarea", { ...common, rows: field.rows || 4, spellcheck: "false" });
      input.value = value || "";
    } else if (field.kind === "choice") {
      const options = field.choices.map((each) => el("option", { value: each }, each));
      input = el("select", common, options);
      if (value) input.value = value;
    } else if (field.kind === "image") {
      const accept = ["png", "jpeg", "webp", "gif", "bmp"].map((each) => `image/${each}`).join();
      input = el("input", { ...common, type: "file", accept });
    } else {
      const number = field.kind === "number";
      input = el("input", {
        ...common, type: number ? "number" : "text", step: number ? field.step || "any" : null,
        min: field.min, max: field.max, autocomplete: "off", spellcheck: "false",
        inputmode: number ? (field.step === 1 ? "numeric" : "decimal") : null,
      });
      input.value = value ?? "";
    }
    this.inputs[field.name] = input;
    this.faults[field.name] = el("p", { class: "fault", id: `${id}-fault`, role: "alert" });
    input.addEventListener("input", () => this.#say(field.name, ""));
    return el("div", { class: `field ${field.kind}` },
      el("label", { for: id }, field.label),
      field.kind === "image" ? this.#imageInput(field, input, kept) : input,
      field.hint ? el("p", { class: "hint", id: `${id}-hint` }, field.hint) : null,
      this.faults[field.name]);
  }

  /** An image by choosing a file, dropping or pasting one. */
  #imageInput(field, input, kept) {
    const shown = el("img", { alt: "the chosen image", hidden: true });
    const box = el("div", { class: "drop" }, input, shown,
      el("p", { class: "hint" }, "Choose a file, drop one here, or paste one."));
    const take = async (file) => {
      if (!file) return;
      if (!file.type.startsWith("image/")) {
        this.#say(field.name, `${file.name} is no image.`);
        return;
      }
      show({ name: file.name || "image.png", url: await read(file) });
    };
    const show = (image) => {
      this.images[field.name] = image;
      shown.src = image.url;
      shown.hidden = false;
      this.#say(field.name, "");
    };
    if (kept && kept.url) show(kept);
    input.addEventListener("change", () => take(input.files[0]));
    box.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
    box.addEventListener("dragover", (event) => {
      event.preventDefault();
      box.classList.add("over");
    });
    box.addEventListener("dragleave", () => box.classList.remove("over"));
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      box.classList.remove("over");
      take([...event.dataTransfer.files][0]);
    });
    return box;
  }

  /** What fields hold as they stand, to be given to another form. */
  kept() {
    const held = Object.entries(this.inputs)
      .filter(([name, input]) => input.type !== "file" || this.images[name])
      .map(([name, input]) => [name, this.images[name] || input.value]);
    return Object.fromEntries(held);
  }

  /** The values by name; null where a needed one is missing, which is then said beside it. */
  values() {
    this.clear();
    const found = {};
    let first = null;
    for (const field of this.fields) {
      const input = this.inputs[field.name];
      let value = field.kind === "image" ? this.images[field.name] : input.value;
      if (field.kind === "list") value = listed(value);
      const empty = value === undefined || value.length === 0
        || (typeof value === "string" && !value.trim());
      const wrong = field.kind === "number"
        && (input.validity.badInput || (!empty && !Number.isFinite(Number(value))));
      if (wrong) this.#say(field.name, "Give a number.");
      else if (empty && field.required) this.#say(field.name, field.missing || "This is needed.");
      if (wrong || (empty && field.required)) first ??= input;
      if (!empty && field.kind === "number" && !wrong) value = Number(value);
      found[field.name] = empty ? null : value;
    }
    if (first) this.#focus(first);
    return first ? null : found;
  }

  /** Shows what the server says: beside the field where it names one, else below the form. */
  fail(error) {
    const named = this.fields.find((field) => error.param
      && (field.name === error.param || (field.params || []).includes(error.param)));
    const begun = this.fields.find((field) => [field.name, ...(field.params || [])]
      .some((name) => new RegExp(`(^|: )${name}\\b[^:]{0,20}:`).test(error.message)));
    const field = named || begun;
    if (!field) {
      this.general.textContent = error.message;
      return;
    }
    this.#say(field.name, error.message);
    this.#focus(this.inputs[field.name]);
  }

  clear() {
    this.general.textContent = "";
    for (const name of Object.keys(this.faults)) this.#say(name, "");
  }

  #say(name, message) {
    this.faults[name].textContent = message;
    if (message) this.inputs[name].setAttribute("aria-invalid", "true");
    else this.inputs[name].removeAttribute("aria-invalid");
  }

  #focus(input) {
    const folded = input.closest("details");
    if (folded) folded.open = true;
    input.focus();
  }
}

/** Lines, or what stands between commas where there is one line. */
function listed(text) {
  const parts = text.includes("\n") ? text.split("\n") : text.split(",");
  return parts.map((each) => each.trim()).filter((each) => each);
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A field to choose a model; `changed` is called with each new one. Returns { node, card }. */
export function modelChoice(cards, changed = () => {}, label = "Model") {
  const id = fresh("model");
  const options = cards.map((card) => el("option", { value: card.id }, card.id));
  const select = el("select", { id }, options);
  const card = () => cards.find((each) => each.id === select.value);
  select.addEventListener("change", () => changed(card()));
  const node = el("div", { class: "field" }, el("label", { for: id }, label), select);
  return { node, card, select };
}

/** A button that sends and one that stops, of which one is there at a time. */
export class Running {
  constructor(label) {
    this.start = el("button", { type: "submit", class: "main" }, label);
    this.stop = el("button", { type: "button", class: "stop", hidden: true }, "Stop");
    this.stop.addEventListener("click", () => this.controller && this.controller.abort());
    this.node = el("div", { class: "buttons" }, this.start, this.stop);
    this.controller = null;
  }

  get busy() { return this.controller !== null; }

  /** Runs `does(signal)`; an error goes to `failed`, but for a stop, which calls `stopped`. */
  async run(does, failed, stopped = () => {}) {
    if (this.busy) return;
    this.controller = new AbortController();
    const focused = document.activeElement === this.start;
    this.start.hidden = true;
    this.stop.hidden = false;
    if (focused) this.stop.focus();
    try {
      await does(this.controller.signal);
    } catch (error) {
      if (error.name === "AbortError") stopped();
      else failed(error);
    } finally {
      this.controller = null;
      const again = document.activeElement === this.stop;
      this.start.hidden = false;
      this.stop.hidden = true;
      if (again) this.start.focus();
    }
  }
}

/** Sends a form by Ctrl or Cmd with Enter, too, or by Enter alone where `plain`. */
export function submitKeys(form, area, plain = false) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    if (event.ctrlKey || event.metaKey || (plain && !event.shiftKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

/** Settings that all continuations have; `tokens` is their limit's name. */
export function sampling(tokens, value) {
  return [
    { name: tokens, label: "Most new tokens", kind: "number", step: 1, min: 1, value,
      more: true, params: ["max_tokens", "max_completion_tokens"] },
    { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.1,
      more: true, hint: "0 takes the likeliest token; empty is the model's own." },
    { name: "top_p", label: "Top p", kind: "number", min: 0, max: 1, step: 0.05, more: true },
    { name: "seed", label: "Seed", kind: "number", step: 1, more: true,
      hint: "The same seed gives the same text." },
  ];
}

/** An object without what isn't given. */
export function given(values) {
  const held = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return Object.fromEntries(held);
}
