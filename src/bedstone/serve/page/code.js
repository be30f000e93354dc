// The request that was just sent, as curl and as Python.

import { address, hasKey } from "./api.js";
import { copyButton, el, fresh } from "./dom.js";

const KEY = "BEDSTONE_API_KEY";
// Fields that the openai client names; all others go into extra_body.
const NAMED = {
  "chat/completions":
    ["model", "messages", "max_completion_tokens", "temperature", "top_p", "seed", "n"],
  "completions": ["model", "prompt", "suffix", "max_tokens", "temperature", "top_p", "seed", "n"],
};
const SHOWN = {
  "chat/completions": "print(answer.choices[0].message.content)",
  "completions": "print(answer.choices[0].text)",
};
const CALLED = {
  "chat/completions": "chat.completions.create",
  "completions": "completions.create",
};

const DRAWN = ["text-to-image", "class-to-image", "unconditional-image-generation",
  "image-to-image", "image-variation"];
const SAVES = `found = answer["results"]
for number, each in enumerate(found if isinstance(found, list) else [found]):
    with open(f"{number}.png", "wb") as file:
        file.write(base64.b64decode(each["image"].partition(",")[2]))`;

/** A text as a shell reads it, in single quotes. */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The command; images are read from their files, by name. `files` is a Map: data URL -> name. */
export function curl(path, body, files) {
  const lines = [`curl ${quoted(address(path))}`, "-H 'Content-Type: application/json'"];
  if (hasKey()) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  const text = JSON.stringify(body, null, 2);
  if (!files.size) return [...lines, `-d ${quoted(text)}`].join(" \\\n  ");
  let held = text.replace(/[\\$`]/g, "\\$&");
  for (const [url, name] of files) {
    const kind = url.slice(0, url.indexOf(",") + 1);
    held = held.replaceAll(url, `${kind}$(base64 < ${quoted(name)} | tr -d '\\n')`);
  }
  return `${[...lines, "-d @- <<END"].join(" \\\n  ")}\n${held}\nEND`;
}

/** A value as Python writes it. */
function literal(value, files, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (files.has(value)) {
    const kind = value.slice("data:".length, value.indexOf(";"));
    return `image(${JSON.stringify(files.get(value))}, ${JSON.stringify(kind)})`;
  }
  if (typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}    `;
  if (Array.isArray(value)) {
    const inner = value.map((each) => literal(each, files, deeper));
    const line = `[${inner.join(", ")}]`;
    if (line.length < 72 && !line.includes("\n")) return line;
    return `[\n${inner.map((each) => `${deeper}${each},\n`).join("")}${indent}]`;
  }
  const inner = Object.entries(value)
    .map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, files, deeper)}`);
  const line = `{${inner.join(", ")}}`;
  if (line.length < 72 && !line.includes("\n")) return line;
  return `{\n${inner.map((each) => `${deeper}${each},\n`).join("")}${indent}}`;
}

/** The program, by the client of the package openai. */
export function python(path, body, files) {
  const named = NAMED[path];
  const known = hasKey() ? `os.environ["${KEY}"]` : '"none"';
  const saves = DRAWN.some((each) => path === `tasks/${each}`);
  const lines = [];
  if (files.size || saves) lines.push("import base64");
  if (hasKey()) lines.push("import os");
  if (lines.length) lines.push("");
  lines.push("from openai import OpenAI", "");
  if (files.size) {
    lines.push("", "def image(name, kind):", "    with open(name, \"rb\") as file:",
      "        data = base64.b64encode(file.read()).decode()",
      "    return f\"data:{kind};base64,{data}\"", "", "");
  }
  const base = JSON.stringify(address("").replace(/\/$/, ""));
  lines.push(`client = OpenAI(base_url=${base}, api_key=${known})`);
  if (!named) {
    lines.push(`body = ${literal(body, files)}`);
    lines.push(`answer = client.post(${JSON.stringify(`/${path}`)}, cast_to=object, body=body)`);
    lines.push(saves ? SAVES : `print(answer["${path === "search" ? "data" : "results"}"])`);
    return `${lines.join("\n")}\n`;
  }
  const own = Object.entries(body).filter(([name]) => named.includes(name));
  const rest = Object.entries(body).filter(([name]) => !named.includes(name));
  const given = own.map(([name, value]) => `    ${name}=${literal(value, files, "    ")},`);
  if (rest.length) {
    given.push(`    extra_body=${literal(Object.fromEntries(rest), files, "    ")},`);
  }
  lines.push(`answer = client.${CALLED[path]}(`, ...given, ")", SHOWN[path]);
  return `${lines.join("\n")}\n`;
}

/** A part of the page that shows both, once `show` was called. */
export class Code {
  constructor() {
    this.texts = { curl: "", Python: "" };
    this.blocks = {};
    const parts = Object.keys(this.texts).map((name) => {
      const id = fresh("code");
      this.blocks[name] = el("code", {});
      return el("section", { "aria-labelledby": id },
        el("div", { class: "heading" }, el("h3", { id }, name),
          copyButton(() => this.texts[name], name)),
        el("pre", { tabindex: 0, "aria-labelledby": id }, this.blocks[name]));
    });
    this.node = el("details", { class: "code", hidden: true },
      el("summary", {}, "The same request by curl and Python"), parts);
  }

  show(path, body, files = new Map()) {
    this.texts.curl = curl(path, body, files);
    this.texts.Python = python(path, body, files);
    for (const [name, block] of Object.entries(this.blocks)) block.textContent = this.texts[name];
    this.node.hidden = false;
  }
}
