// The page: it asks for the server's numbers each second while somebody looks, and shows those of one model.

import { Chat } from "./chat.js";
import { byId, el, replace } from "./elements.js";
import { Last } from "./last.js";
import { History, Live } from "./live.js";
import { isKey, key, Refused, state } from "./server.js";

const EVERY_MS = 1000;
const FAILED_MS = 3000;

class Page {
  #started = null; // which server answers
  #seen = 0; // the largest number of a request whose skipped blocks are known
  #maps = new Map(); // model -> {number, rows} of its newest request
  #histories = new Map();
  #chats = new Map();
  #chosen = null;
  #state = null;
  #failed = null; // since when nobody answers
  #live = new Live(byId("tiles"), byId("charts"));
  #last = new Last(byId("last-facts"));
  #woken = () => {};

  constructor() {
    byId("model").addEventListener("change", (event) => {
      this.#chosen = event.target.value;
      this.#show();
    });
    byId("key").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(byId("key-text").value.trim());
    });
    byId("forget").addEventListener("click", () => {
      key.set("");
      location.reload();
    });
    document.addEventListener("visibilitychange", () => this.#woken());
  }

  async run() {
    for (;;) {
      if (!document.hidden && byId("key").hidden) await this.#ask();
      await this.#rest(this.#failed === null ? EVERY_MS : FAILED_MS);
    }
  }

  async #ask() {
    try {
      this.#take_in(await state(this.#seen));
      this.#failed = null;
      this.#trouble(this.#state.draining ? "The server is ending, and takes no further request." : null);
      this.#connection("live", "live");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) this.#ask_key(key.there ? "The server does not know this key." : "");
      else this.#fail(error);
    }
  }

  #take_in(told) {
    if (told.started !== this.#started && this.#started !== null) {
      this.#seen = 0; // another server counts anew
      this.#maps.clear();
    }
    this.#started = told.started;
    this.#state = told;
    for (const model of told.models) {
      if (!this.#histories.has(model.name)) this.#histories.set(model.name, new History());
      this.#histories.get(model.name).add(told.now, model);
      const { last } = model;
      if (last?.skipped_by_gate) this.#maps.set(model.name, { number: last.number, rows: last.skipped_by_gate });
      const map = this.#maps.get(model.name);
      if (last && map?.number === last.number) last.skipped_by_gate = map.rows;
      this.#seen = Math.max(this.#seen, last?.number ?? 0);
    }
    this.#models(told.models);
    this.#show();
  }

  #models(models) {
    const names = models.map((each) => each.name);
    if (this.#chosen === null || !names.includes(this.#chosen)) this.#chosen = names[0];
    byId("models").hidden = names.length < 2;
    byId("model-name").hidden = names.length > 1;
    byId("model-name").textContent = names[0];
    const shown = Array.from(byId("model").options, (option) => option.value);
    if (shown.join("\n") !== names.join("\n")) {
      replace(byId("model"), ...names.map((each) => el("option", { value: each }, each)));
      byId("model").value = this.#chosen;
    }
  }

  #show() {
    const model = this.#state.models.find((each) => each.name === this.#chosen);
    byId("main").hidden = false;
    byId("forget").hidden = !key.there;
    this.#live.show(model, this.#histories.get(model.name), this.#state.refused);
    this.#last.show(model, this.#state.now);
    if (!this.#chats.has(model.name)) this.#chats.set(model.name, new Chat(model));
    const { parts } = this.#chats.get(model.name);
    if (byId("chat").firstChild !== parts[0]) replace(byId("chat"), ...parts);
  }

  #ask_key(why) {
    this.#connection("lost", "needs a key");
    byId("main").hidden = true;
    byId("key").hidden = false;
    byId("key-wrong").textContent = why;
    byId("key-text").focus();
  }

  #take(text) {
    if (!isKey(text)) {
      byId("key-wrong").textContent = "A key has letters, digits and signs, and no spaces.";
      return;
    }
    key.set(text);
    byId("key-text").value = "";
    byId("key").hidden = true;
    this.#woken();
  }

  #fail(error) {
    this.#failed ??= new Date();
    const refused = error instanceof Refused ? `: ${error.message}` : "";
    this.#trouble(`No answer from the server since ${this.#failed.toLocaleTimeString()}${refused}. Trying again.`);
    this.#connection("lost", "not reached");
  }

  #trouble(words) {
    const place = byId("trouble");
    if (place.textContent !== (words ?? "")) place.textContent = words ?? "";
    place.hidden = words === null;
  }

  #connection(kind, words) {
    const place = byId("connection");
    if (place.dataset.kind === kind && place.lastElementChild.textContent === words) return;
    place.dataset.kind = kind;
    place.lastElementChild.textContent = words;
    document.body.classList.toggle("stale", kind === "lost");
  }

  #rest(ms) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.#woken = () => {
        clearTimeout(timer);
        done();
      };
    });
  }
}

new Page().run();
