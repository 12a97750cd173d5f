// What a chat asks for beside its text: the budget, the route, and how tokens are chosen.

import { el } from "./elements.js";

const STEP = 0.05;
const MOST_TOKENS = 256;

/** Steps in which tokens are shaded, as page.css has them. */
export const SHADES = 6;

export class Controls {
  #budget = null; // null asks for none: the model's own
  #slider = null;
  #route = null;
  #temperature = number("Temperature", { min: 0, max: 2, step: 0.1, value: 0 });
  #tokens;

  constructor(model) {
    this.own = model.budget;
    this.#tokens = number("Most tokens", { min: 1, max: model.max_tokens, value: Math.min(MOST_TOKENS, model.max_tokens) });
    const routes = Object.keys(model.routes);
    const more = el("details", {}, el("summary", {}, "More"), el("div", { class: "line" }, this.#temperature, this.#tokens));
    const note = el("p", { class: "quiet" }, "This bundle has no gates and no router: it always runs whole.");
    const budget = model.takes_budget ? this.#budgetSlider() : routes.length ? null : note;
    const route = routes.length ? this.#routeChoice(routes, model.takes_budget) : null;
    const scale = model.gates === null ? null : shading();
    this.element = el("div", { class: "controls" }, budget, route, scale, more);
  }

  /** Fields of a request. */
  get fields() {
    const adaptc = { skips: true };
    if (this.#budget !== null) adaptc.budget = this.#budget;
    if (this.#route?.value) adaptc.route = this.#route.value;
    return { adaptc, temperature: value(this.#temperature), max_tokens: value(this.#tokens) };
  }

  #budgetSlider() {
    const output = el("output", { for: "budget" });
    const reset = el("button", { type: "button", class: "plain" }, "as compiled");
    this.#slider = el("input", { id: "budget", type: "range", min: 0, max: 1, step: STEP, value: this.own ?? 1, list: "budgets" });
    const show = () => {
      const own = this.own === null ? "as compiled" : `${this.own.toFixed(2)}, as compiled`;
      output.textContent = this.#budget === null ? own : this.#budget.toFixed(2);
      this.#slider.setAttribute("aria-valuetext", output.textContent);
      reset.hidden = this.#budget === null;
    };
    this.#slider.addEventListener("input", () => {
      this.#budget = Number(this.#slider.value);
      show();
    });
    reset.addEventListener("click", () => {
      this.#budget = null;
      this.#slider.value = String(this.own ?? 1);
      show();
      this.#slider.focus();
    });
    show();
    const marks = el("datalist", { id: "budgets" }, ...[0, 0.5, 1].map((mark) => el("option", { value: mark })));
    const words = el("div", { class: "marks", "aria-hidden": "true" }, ...["fast", "balanced", "dense"].map((each) => el("span", {}, each)));
    const head = el("div", { class: "line" }, el("label", { for: "budget" }, "Budget"), output, reset);
    return el("div", { class: "budget" }, head, this.#slider, words, marks);
  }

  #routeChoice(routes, decides) {
    const own = el("option", { value: "" }, decides ? "the router decides" : "the first one");
    this.#route = el("select", { id: "route" }, own, ...routes.map((each) => el("option", { value: each }, each)));
    return el("div", { class: "line" }, el("label", { for: "route" }, "Route"), this.#route);
  }
}

/** What the colours of an answer mean. */
function shading() {
  const steps = Array.from({ length: SHADES }, (_, place) => el("i", { class: `t${place}` }));
  const bar = el("span", { class: "shades", "aria-hidden": "true" }, ...steps);
  return el("p", { class: "shading" }, "Shade of a word: gated blocks skipped, none ", bar, " all");
}

function number(name, attributes) {
  return el("label", {}, `${name} `, el("input", { type: "number", ...attributes }));
}

/** What a field says, or what it said at first if that is no number of its range. */
function value(label) {
  const input = label.querySelector("input");
  return input.value !== "" && input.validity.valid ? input.valueAsNumber : Number(input.defaultValue);
}
