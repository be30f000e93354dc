// Calls of the server's own API. The key lives in this module, in memory alone.

let key = "";
let locked = () => {};

export function setKey(given) { key = given; }
export function hasKey() { return key !== ""; }
/** What is done when the server asks for a key. */
export function onLocked(does) { locked = does; }

/** The address of a route, such as "chat/completions". */
export function address(path) {
  return new URL(`v1/${path}`, document.baseURI).href;
}

/** What the server says is wrong; `param` is the field of the request, where it is one. */
export class Refused extends Error {
  constructor(message, param = null, status = 0) {
    super(message);
    this.param = param;
    this.status = status;
  }
}

async function send(path, options) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    const own = { headers, credentials: "omit", cache: "no-store" };
    answer = await fetch(address(path), { ...options, ...own });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server can't be reached. Is it running still?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const known = body && body.error ? body.error : {};
  if (answer.status === 401) locked(hasKey());
  let message = known.message || `The server answered with status ${answer.status}.`;
  const after = answer.headers.get("retry-after");
  const busy = answer.status === 429 || answer.status === 503;
  if (busy && after) message += ` Try again in ${after} s.`;
  throw new Refused(message, known.param || null, answer.status);
}

/** The answer to a GET, read as JSON. */
export async function get(path) {
  return (await send(path, {})).json();
}

/** The answer to a request, read as JSON. */
export async function post(path, body, signal) {
  return (await send(path, written(body, signal))).json();
}

/** The events of a stream, each read as JSON. */
export async function* events(path, body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await send(path, written(asked, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused("The answer ended before it was whole.");
    held += value;
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
      signal.throwIfAborted();  // what has come already isn't shown after a stop, either
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      const lines = event.split("\n").filter((line) => line.startsWith("data: "));
      const data = lines.map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const read = JSON.parse(data);
      if (read.error) throw new Refused(read.error.message, read.error.param, 200);
      yield read;
    }
  }
}

function written(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

/**
 * Streams a chat or a completion and hands on each piece of text.
 *
 * Returns { seconds, first, tokens, finish }: times in seconds; tokens of the answer.
 */
export async function streamed(path, body, signal, piece) {
  const began = performance.now();
  const known = { seconds: 0, first: null, tokens: null, finish: null };
  try {
    for await (const event of events(path, body, signal)) {
      const choice = event.choices && event.choices[0];
      const text = choice ? (choice.delta ? choice.delta.content : choice.text) : "";
      if (text) {
        known.first ??= (performance.now() - began) / 1000;
        piece(text);
      }
      if (choice && choice.finish_reason) known.finish = choice.finish_reason;
      if (event.usage) known.tokens = event.usage.completion_tokens;
    }
  } finally {
    known.seconds = (performance.now() - began) / 1000;
  }
  return known;
}

/** What is said below an answer. */
export function figures({ seconds, first, tokens, finish }) {
  const parts = [`${seconds.toFixed(seconds < 1 ? 2 : 1)} s`];
  if (first !== null) parts.push(`first text after ${first.toFixed(2)} s`);
  if (tokens) parts.push(`${tokens} tokens`, `${(tokens / seconds).toFixed(1)} tokens/s`);
  if (finish === "length") parts.push("ended at the limit of tokens");
  return parts.join(", ");
}
