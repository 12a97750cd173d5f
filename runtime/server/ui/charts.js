// Small charts of the last two minutes. Words are HTML, so that a chart may be of any width.

import { el, replace, svg } from "./elements.js";
import { whole } from "./numbers.js";

const SECONDS = 120;
const GAP = 5; // seconds without a number break a line
const WIDTH = 240;
const HEIGHT = 60;

export class Chart {
  /**
   * @param title What it shows.
   * @param lines [name, number of a sample] of each line; null where there is none.
   * @param show A number as text.
   * @param least The top of the axis if all numbers are smaller.
   * @param end The top of the axis as text.
   */
  constructor(title, lines, show, least, end = whole) {
    this.end = end;
    this.lines = lines;
    this.show = show;
    this.least = least;
    this.title = title;
    this.legend = el("ul", { class: "legend" });
    this.top = el("span", { class: "top" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    const plot = el("div", { class: "plot" }, this.picture, this.top);
    const axis = el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, "−2 min"), el("span", {}, "now"));
    this.element = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title), this.legend), plot, axis);
  }

  /** Draw samples, the oldest first; each has its time in seconds as `at`. */
  draw(samples) {
    const now = samples.at(-1).at;
    const shown = samples.filter((each) => each.at >= now - SECONDS);
    const values = shown.flatMap((each) => this.lines.map(([, value]) => value(each))).filter((each) => each !== null);
    const top = rounded(Math.max(this.least, ...values));
    this.top.textContent = values.length ? this.end(top) : "";
    const paths = this.lines.map(([, value], place) =>
      svg("path", { class: `curve c${place}`, d: path(shown, value, now, top), "vector-effect": "non-scaling-stroke" }),
    );
    const middle = svg("path", { class: "grid", d: `M0 ${HEIGHT / 2}H${WIDTH}`, "vector-effect": "non-scaling-stroke" });
    replace(this.picture, middle, ...paths.reverse());
    const latest = this.lines.map(([name, value]) => [name, value(shown.at(-1))]);
    const words = latest.map(([name, value]) => [name, value === null ? "–" : this.show(value)]);
    replace(this.legend, ...words.map(([name, text], place) => entry(name, text, place)));
    this.picture.setAttribute("aria-label", `${this.title}: ${words.map((each) => each.join(" ")).join(", ")}`);
  }
}

function entry(name, text, place) {
  return el("li", {}, el("i", { class: `dot c${place}` }), `${name} `, el("span", { class: "value" }, text));
}

/** Lines through the samples that have a number. */
function path(samples, value, now, top) {
  let before = -Infinity;
  return samples
    .filter((each) => value(each) !== null)
    .map((each) => {
      const x = WIDTH * (1 - (now - each.at) / SECONDS);
      const y = HEIGHT - 1 - (HEIGHT - 2) * (value(each) / top);
      const letter = each.at - before > GAP ? "M" : "L";
      before = each.at;
      return `${letter}${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join("");
}

/** The next of 1, 2, 5, 10, 20, ... */
function rounded(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * size).find((each) => each >= value * 0.999);
}
