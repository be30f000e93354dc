// Elements. Texts of users and models become text nodes and nothing else.

/** An element; `on...` attributes are listeners, children are elements or texts. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((each) => each !== null && each !== undefined));
  return node;
}

let made = 0;

/** An id that no other element has. */
export function fresh(name) {
  made += 1;
  return `${name}-${made}`;
}

const percent = (score) => `${(score * 100).toFixed(1)} %`;

/** Labels with their scores, from 0 to 1, as bars; `said` makes a score a text. */
export function bars(rows, said = percent) {
  const items = rows.map(([label, score]) => {
    const fill = el("span", { class: "fill" });
    fill.style.width = `${Math.max(0, Math.min(1, score || 0)) * 100}%`;
    return el("li", {},
      el("span", { class: "name" }, String(label)),
      el("span", { class: "score" }, score === null ? "" : said(score)),
      el("span", { class: "bar", "aria-hidden": "true" }, fill));
  });
  return el("ol", { class: "bars" }, items);
}

/**
 * A text with parts marked.
 *
 * `spans` are { start, end, label, score }; places count code points, as Python does.
 */
export function marked(text, spans) {
  const points = Array.from(text);
  const found = el("p", { class: "marked" });
  let at = 0;
  for (const span of [...spans].sort((one, two) => one.start - two.start)) {
    if (span.start === null || span.start < at) continue;
    found.append(points.slice(at, span.start).join(""));
    const inner = points.slice(span.start, span.end).join("");
    const score = span.score === undefined ? "" : ` ${(span.score * 100).toFixed(0)} %`;
    const label = span.label ? el("small", {}, ` ${span.label}${score}`) : null;
    found.append(el("mark", { class: hue(span.label) }, inner, label));
    at = span.end;
  }
  found.append(points.slice(at).join(""));
  return found;
}

/** One of six colours for a label, always the same one. */
function hue(label) {
  let sum = 0;
  for (const each of String(label || "")) sum = (sum * 31 + each.codePointAt(0)) % 997;
  return `hue${label ? sum % 6 : 0}`;
}

/** An image of the API, by its data URL; nothing else is shown. */
export function picture(url, alt) {
  if (!/^data:image\/(png|jpeg|webp);base64,/.test(url)) {
    return el("p", { class: "fault" }, "The answer holds no image.");
  }
  const image = el("img", { alt });
  image.addEventListener("load", () => {  // of few pixels, each is shown as it is
    image.classList.toggle("few", image.naturalWidth < 100);
  });
  image.src = url;
  return image;
}

/** A button that copies a text. */
export function copyButton(text, what) {
  const named = { type: "button", class: "small", "aria-label": `Copy ${what}` };
  const button = el("button", named, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select the text and copy it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return button;
}
