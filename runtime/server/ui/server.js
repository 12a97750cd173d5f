// What the page asks its server for, and the key that it asks with.

const NAME = "adaptc.key";
const STATE_MS = 10_000;

/** The server answered, and its answer is a refusal. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The API key: for this tab, until it is closed. A browser that keeps nothing for pages has it until a reload. */
class Key {
  #text = stored(() => sessionStorage.getItem(NAME)) ?? "";

  get there() {
    return this.#text !== "";
  }

  set(text) {
    this.#text = text;
    stored(() => (text ? sessionStorage.setItem(NAME, text) : sessionStorage.removeItem(NAME)));
  }

  get headers() {
    return this.there ? { Authorization: `Bearer ${this.#text}` } : {};
  }
}

function stored(use) {
  try {
    return use();
  } catch {
    return null;
  }
}

export const key = new Key();

/** Whether a text can be a key: it is sent in a header. */
export const isKey = (text) => /^[\x21-\x7e]+$/.test(text);

/** The numbers of all models; which blocks a request skipped only for requests after `seen`. */
export async function state(seen) {
  const signal = AbortSignal.timeout(STATE_MS);
  const answer = await fetch(`ui/state?seen=${seen}`, { headers: key.headers, cache: "no-store", signal });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

/** The events of an answer, one by one. */
export async function* events(path, body, signal) {
  const headers = { "Content-Type": "application/json", ...key.headers };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Refused(0, "The answer broke off: the server ended, or the connection did.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(0, event.error.message);
      yield event;
    }
  }
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  return new Refused(answer.status, body?.error?.message ?? `The server answered ${answer.status}.`);
}
