// A chat with one model. Every answer shows its trace, and its tokens are coloured by the blocks that they skipped.

import { Controls, SHADES } from "./controls.js";
import { el, replace } from "./elements.js";
import { counted, percent, three, time, whole } from "./numbers.js";
import { events } from "./server.js";
import { skipMap } from "./skip_map.js";

const NEAR = 40; // pixels from the end of the log at which it follows what is written

export class Chat {
  #messages = [];
  #running = null;

  constructor(model) {
    this.model = model;
    this.title = el("h2", { id: "chat-title" }, model.chat === "prompt" ? "Write" : "Chat");
    if (model.chat === null) {
      const why = model.kind === "inputs" ? "answers inputs and writes no text; /v1/infer is for it" : "has no tokenizer";
      this.parts = [this.title, el("p", { class: "quiet" }, `No chat here: ${model.name} ${why}.`)];
      return;
    }
    this.controls = new Controls(model);
    this.log = el("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: 0 });
    const what = model.chat === "prompt" ? "A text to go on with" : "Message";
    this.text = el("textarea", { id: "message", rows: 2, "aria-label": what, placeholder: what });
    this.send = el("button", { type: "submit" }, "Send");
    this.stop = el("button", { type: "button", hidden: true }, "Stop");
    this.clear = el("button", { type: "button", class: "plain", hidden: true }, "New chat");
    const buttons = el("div", { class: "buttons" }, this.clear, this.stop, this.send);
    this.form = el("form", { class: "composer" }, this.text, buttons);
    this.parts = [this.title, this.controls.element, this.log, this.form];
    this.#listen();
    this.#empty();
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running === null && this.text.value.trim()) this.#ask(this.text.value);
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
    this.stop.addEventListener("click", () => this.#running?.abort());
    this.clear.addEventListener("click", () => {
      this.#running?.abort();
      this.#messages = [];
      this.clear.hidden = true;
      this.#empty();
      this.text.focus();
    });
  }

  #empty() {
    const own = this.model.chat === "prompt" ? "This model has no chat template, so it goes on with what you write. " : "";
    replace(this.log, el("p", { class: "quiet" }, `${own}What is said here stays in this tab.`));
  }

  async #ask(text) {
    const question = { role: "user", content: text };
    if (!this.log.querySelector(".said")) replace(this.log);
    this.log.append(said("user", "You", el("div", { class: "text" }, text)));
    this.text.value = "";
    const answer = new Answer(this.model);
    this.log.append(answer.element);
    this.#busy(new AbortController());
    const follow = () => this.#follow();
    try {
      await answer.read(this.#events(question), follow);
    } catch (error) {
      if (error.name !== "AbortError") {
        answer.fail(error);
        if (!this.text.value) this.text.value = text;
      } else {
        answer.end(null);
      }
    }
    if (answer.text) this.#messages.push(question, { role: "assistant", content: answer.text });
    this.#busy(null);
    follow();
  }

  #events(question) {
    const fields = { model: this.model.name, stream: true, ...this.controls.fields };
    const { signal } = this.#running;
    if (this.model.chat === "prompt") return events("v1/completions", { prompt: question.content, ...fields }, signal);
    return events("v1/chat/completions", { messages: [...this.#messages, question], ...fields }, signal);
  }

  #busy(running) {
    this.#running = running;
    this.log.setAttribute("aria-busy", String(running !== null));
    this.send.hidden = running !== null;
    this.stop.hidden = running === null;
    this.clear.hidden = false;
    if (running !== null) this.log.scrollTop = this.log.scrollHeight;
  }

  #follow() {
    const { log } = this;
    if (log.scrollHeight - log.scrollTop - log.clientHeight < NEAR + log.lastElementChild.lastElementChild.clientHeight) {
      log.scrollTop = log.scrollHeight;
    }
  }
}

function said(kind, who, ...parts) {
  return el("div", { class: `said ${kind}` }, el("span", { class: "who" }, who), ...parts);
}

/** One answer as it is written. */
class Answer {
  text = "";
  #skips = []; // for each token a text with a character for each gate, or null

  constructor(model) {
    this.model = model;
    this.body = el("div", { class: "text" }, el("span", { class: "waits", "aria-label": "waiting" }));
    this.foot = el("p", { class: "trace" });
    this.element = said("assistant", model.name, this.body, this.foot);
  }

  async read(coming, shown) {
    for await (const event of coming) {
      const [choice] = event.choices;
      const told = event.adaptc?.skipped_by_token ?? [];
      this.#skips.push(...told);
      const piece = choice.delta?.content ?? choice.text ?? "";
      if (piece) this.#write(piece, told);
      if (choice.finish_reason) this.end(event.adaptc);
      shown();
    }
  }

  #write(piece, told) {
    if (this.text === "") replace(this.body);
    this.text += piece;
    const counted_ = told.filter((each) => each !== null);
    if (!counted_.length || this.model.gates === null) {
      this.body.append(el("span", {}, piece));
      return;
    }
    const bits = counted_.join("");
    const skipped = bits.replaceAll("0", "").length;
    const shade = Math.round(((SHADES - 1) * skipped) / bits.length);
    const share = skipped / (counted_.length * this.model.gates.blocks);
    this.body.append(el("span", { class: `t${shade}`, title: `${percent(share)} of blocks skipped` }, piece));
  }

  /** Show what was decided; null if it was stopped here. */
  end(trace) {
    if (this.text === "") replace(this.body, el("span", { class: "quiet" }, "No text."));
    const tokens = this.#skips.length;
    replace(this.foot, ...(trace === null ? ["stopped"] : facts(trace, tokens)).map((each) => el("span", {}, each)));
    const rows = this.#rows();
    if (rows === null) return;
    const map = skipMap(this.model.gates, rows, tokens);
    this.element.append(el("details", {}, el("summary", {}, "Which blocks ran"), map));
  }

  fail(error) {
    if (this.text === "") replace(this.body);
    const words = error.status === undefined ? "The server does not answer." : error.message;
    this.foot.append(el("span", { class: "bad", role: "alert" }, words));
  }

  /** For each gate a text with a character for each token after the warm-up; null if there is none. */
  #rows() {
    const tokens = this.#skips.filter((each) => each !== null);
    if (!tokens.length || this.model.gates === null) return null;
    return Array.from(tokens[0], (_, place) => tokens.map((each) => each[place]).join(""));
  }
}

const ENDS = { length: "cut: no further tokens fit or were asked for", deadline: "cut at the deadline" };

function facts(trace, tokens) {
  const speed = tokens > 1 && trace.decode_ms ? `${three((1000 * (tokens - 1)) / trace.decode_ms)} tokens/s` : null;
  return [
    trace.ffn_skipped === undefined ? null : `${percent(trace.ffn_skipped)} of blocks skipped`,
    trace.route === undefined ? null : `route ${trace.route}`,
    trace.budget === null ? null : `budget ${trace.budget.toFixed(2)}`,
    trace.lowered_to === null ? null : `lowered to ${trace.lowered_to.toFixed(2)} by load`,
    `first token ${time(trace.time_to_first_token_ms)}`,
    speed,
    counted(tokens, "token"),
    trace.cached_tokens ? `${whole(trace.cached_tokens)} of the prompt known` : null,
    ENDS[trace.finish_reason] ?? null,
  ].filter((each) => each !== null);
}
