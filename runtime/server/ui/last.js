// The newest request of a model, whoever asked it: its route, its skipped blocks and its times, and no text.

import { el, replace } from "./elements.js";
import { ago, counted, percent, time, whole } from "./numbers.js";
import { skipMap } from "./skip_map.js";

export class Last {
  #shown = null;
  #age = el("dd");
  #map = null;

  constructor(root) {
    this.root = root;
  }

  show(model, now) {
    const last = model.last;
    const name = `${model.name} ${last?.number}`;
    if (last !== null) this.#age.textContent = ago(now - last.ended);
    if (name === this.#shown && !last?.skipped_by_gate) return;
    this.#shown = name;
    if (last === null) {
      replace(this.root, el("p", { class: "quiet" }, "No request has ended since the server was started."));
    } else if (model.kind === "inputs") {
      replace(this.root, this.#facts(inputFacts(last)));
    } else {
      replace(this.root, this.#facts(textFacts(model, last)), this.#blocks(model, last), routes(model));
    }
  }

  #facts(pairs) {
    const known = pairs.filter(([, value]) => value !== null);
    const parts = known.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
    return el("dl", {}, el("div", {}, el("dt", {}, "ended"), this.#age), ...parts);
  }

  #blocks(model, last) {
    if (model.gates === null) return el("p", { class: "quiet" }, "This bundle has no skip gates: every block runs.");
    const rows = last.skipped_by_gate;
    if (!rows?.[0]?.length) return el("p", { class: "quiet" }, "It ended within the warm-up, in which every block runs.");
    return skipMap(model.gates, rows, last.new_tokens);
  }
}

function textFacts(model, last) {
  const asked = last.budget === null ? "as compiled" : last.budget.toFixed(2);
  const budget = last.lowered_to === null ? asked : `${asked}, lowered to ${last.lowered_to.toFixed(2)}`;
  const known = last.cached_tokens ? `, ${whole(last.cached_tokens)} of them known` : "";
  return [
    ["route", last.routes.length ? last.routes.map(([first, route]) => (first ? `${route} from token ${first + 1}` : route)).join(", ") : null],
    ["budget", model.takes_budget ? budget : null],
    ["blocks skipped", last.ffn_skipped === null ? null : percent(last.ffn_skipped)],
    ["prompt", counted(last.prompt_tokens, "token") + known],
    ["written", counted(last.new_tokens, "token")],
    ["ended by", last.finish_reason],
    ["first token", last.first_ms === null ? null : time(last.first_ms)],
    ["time per token", last.each_ms === null ? null : time(last.each_ms)],
  ];
}

function inputFacts(last) {
  const sets = new Map();
  for (const each of last.modalities) sets.set(each.join(" + "), (sets.get(each.join(" + ")) ?? 0) + 1);
  const rows = [...sets].map(([name, count]) => `${name}: ${counted(count, "row")}`).join(", ");
  return [
    ["answered from", rows],
    ["expected accuracy", last.accuracy === null ? null : last.accuracy.toFixed(3)],
    ["time", time(last.whole_ms)],
  ];
}

/** How often each route was taken. */
function routes(model) {
  const counts = Object.entries(model.routes);
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  if (!counts.length) return null;
  const rows = counts.map(([route, count]) => {
    const part = el("i");
    part.style.width = `${total ? (100 * count) / total : 0}%`;
    const bar = el("td", {}, el("div", { class: "bar" }, part));
    return el("tr", {}, el("th", { scope: "row" }, route), bar, el("td", { class: "number" }, whole(count)));
  });
  const heads = el("tr", {}, el("th", { scope: "col" }, "route"), el("td"), el("th", { scope: "col", class: "number" }, "requests"));
  return el("table", { class: "bars" }, el("caption", {}, "Routes since the start"), el("thead", {}, heads), el("tbody", {}, ...rows));
}
