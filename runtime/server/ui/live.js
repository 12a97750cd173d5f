// The tiles and the charts of one model: how busy it is and how quickly it answers.

import { Chart } from "./charts.js";
import { el, replace } from "./elements.js";
import { counted, percent, roundTime, three, time, whole } from "./numbers.js";

const MOST = 180; // samples, one a second

/** What was read of one model, second by second, while the page was open. */
export class History {
  samples = [];
  #before = null;

  /** Add what a model says, at a time of the server's clock in seconds. */
  add(now, model) {
    const before = this.#before;
    const seconds = before === null ? 0 : now - before.now;
    const rate = (name) => {
      const more = seconds > 0 ? model[name] - before.model[name] : -1;
      return more >= 0 ? more / seconds : null; // less than before: another server answers
    };
    const { first_ms: first, each_ms: each, whole_ms: whole_ } = model.minute;
    this.samples.push({
      at: now,
      first: first,
      each: each,
      whole: whole_,
      written: rate("written_tokens"),
      read: rate("read_tokens"),
      running: model.running ?? model.inside,
      waiting: model.waiting ?? null,
    });
    this.samples = this.samples.slice(-MOST);
    this.#before = { now, model };
  }
}

const of = (name, place) => (sample) => sample[name]?.[place] ?? null;
const latency = (title, name) => new Chart(title, [["p50", of(name, 0)], ["p95", of(name, 1)]], time, 1, roundTime);
const CHARTS = {
  text: () => [
    latency("First token", "first"),
    latency("Time per token", "each"),
    new Chart("Tokens per second", [["written", (s) => s.written], ["prompt", (s) => s.read]], three, 10),
    new Chart("Requests", [["running", (s) => s.running], ["waiting", (s) => s.waiting]], whole, 4),
  ],
  inputs: () => [
    latency("Time of a request", "whole"),
    new Chart("Requests", [["running or waiting", (s) => s.running]], whole, 4),
  ],
};

export class Live {
  #kind = null;
  #charts = [];

  constructor(tiles, charts) {
    this.tiles = tiles;
    this.charts = charts;
  }

  show(model, history, refused) {
    if (model.kind !== this.#kind) {
      this.#kind = model.kind;
      this.#charts = CHARTS[model.kind]();
      replace(this.charts, ...this.#charts.map((each) => each.element));
    }
    for (const chart of this.#charts) chart.draw(history.samples);
    const made = model.kind === "text" ? textTiles(model, history.samples.at(-1)) : inputTiles(model);
    const count = Object.values(refused).reduce((sum, each) => sum + each, 0);
    if (count) made.push(tile("Refused", whole(count), "since the start, by all models"));
    replace(this.tiles, ...made);
  }
}

function textTiles(model, now) {
  const { minute } = model;
  const known = model.prompt_tokens ? model.known_tokens / model.prompt_tokens : null;
  const kv = model.kv_tokens / model.kv_capacity;
  const tiles = [
    latencyTile("First token", minute.first_ms),
    latencyTile("Time per token", minute.each_ms),
    tile("Tokens per second", now.written === null ? "–" : three(now.written), `${three(now.read ?? 0)} of prompts read`),
    tile("Running", `${model.running} of ${model.batch}`, `${model.waiting} waiting, ${minute.requests} in the last minute`),
    tile("KV cache", percent(kv), `${whole(model.kv_tokens)} of ${whole(model.kv_capacity)} tokens`, kv),
    tile("Prefix cache", known === null ? "–" : percent(known), "of prompt tokens were known", known),
  ];
  if (model.gates !== null) {
    const share = minute.ffn_skipped;
    tiles.push(tile("Blocks skipped", share === null ? "–" : percent(share), "of all, last minute", share));
  }
  if (model.budget_ceiling !== null) {
    const lowered = `load at ${percent(model.pressure)} of what lowers budgets, ${counted(model.budget_lowered, "request")} lowered`;
    const more = model.pressure ? lowered : "not limited by load";
    tiles.push(tile("Budget ceiling", model.budget_ceiling.toFixed(2), more, model.budget_ceiling));
  }
  return tiles;
}

function inputTiles(model) {
  return [
    latencyTile("Time of a request", model.minute.whole_ms),
    tile("Running or waiting", whole(model.inside), `${model.minute.requests} in the last minute`),
    ...Object.entries(model.dropped).map(([name, count]) => tile(`Without ${name}`, whole(count), "rows since the start")),
  ];
}

function latencyTile(name, percentiles) {
  if (percentiles === null) return tile(name, "–", "none in the last minute");
  const [middle, most, nearly] = percentiles.map(time);
  return tile(name, middle, `p95\u00a0${most}, p99\u00a0${nearly}`);
}

/** A number with its name, and a bar if it is a share. */
function tile(name, value, more, share = null) {
  const item = el("li", {}, el("span", { class: "name" }, name), el("b", {}, value), el("span", { class: "more" }, more));
  if (share !== null) {
    const bar = el("i");
    bar.style.width = `${Math.min(100, 100 * share)}%`;
    item.append(el("div", { class: "bar", "aria-hidden": "true" }, bar));
  }
  return item;
}
