// The skip map: a row for each layer with a gate, a column for each token that was written.

import { el, svg } from "./elements.js";
import { percent } from "./numbers.js";

const APART = 160; // columns; with more there is no room between them

/**
 * A picture of which feed-forward blocks ran.
 *
 * @param gates The model's: {layers, blocks}.
 * @param rows For each gate a text with a character for each of the last tokens: 1 if its block was skipped, else 0.
 * @param tokens The number of tokens that were written; those before the rows' ran all blocks.
 */
export function skipMap(gates, rows, tokens) {
  const count = rows[0]?.length ?? 0;
  const first = tokens - count;
  const names = rows.map((_, place) => gates.layers[place] ?? `tail ${place - gates.layers.length + 1}`);
  const output = el("output", { class: "quiet" }, " ");
  const heads = [el("span", { class: "layer" }, "layer"), el("span", { class: "share" }, "skipped")];
  const grid = el("div", { class: "skip-map" }, ...heads);
  rows.forEach((row, place) => {
    grid.append(el("span", { class: "layer" }, String(names[place])));
    grid.append(el("span", { class: "share" }, percent(share(row))));
  });
  const picture = drawn(rows, first, tokens);
  picture.style.gridRow = `2 / span ${Math.max(1, rows.length)}`;
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const token = Math.min(tokens - 1, Math.floor((tokens * (event.clientX - box.left)) / box.width));
    const place = Math.min(rows.length - 1, Math.floor((rows.length * (event.clientY - box.top)) / box.height));
    output.textContent = told(names[place], token, rows[place][token - first]);
  });
  picture.addEventListener("pointerleave", () => (output.textContent = " "));
  grid.append(picture);
  const axis = el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, "token 1"), el("span", {}, String(tokens)));
  return el("figure", { class: "map" }, legend(first), el("div", { class: "map-body" }, grid, axis), output);
}

const share = (row) => (row.length ? row.replaceAll("0", "").length / row.length : 0);

function told(layer, token, cell) {
  const what = cell === undefined ? "ran, as all do there" : cell === "1" ? "skipped" : "ran";
  return `layer ${layer}, token ${token + 1}: ${what}`;
}

function legend(first) {
  const entry = (name, text) => el("li", {}, el("i", { class: name }), text);
  const always = first > 0 ? entry("always", "not gated: prompt and warm-up") : null;
  return el("ul", { class: "legend" }, entry("skipped", "skipped"), entry("ran", "ran"), always);
}

function drawn(rows, first, tokens) {
  const total = rows.length ? rows.reduce((sum, row) => sum + share(row), 0) / rows.length : 0;
  const label = `Skip map of ${rows.length} layers and ${tokens} tokens: ${percent(total)} of the gated blocks were skipped.`;
  const picture = svg("svg", {
    viewBox: `0 0 ${Math.max(1, tokens)} ${Math.max(1, rows.length)}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": label,
    "data-layers": rows.length,
    "data-tokens": tokens,
  });
  const width = tokens > APART ? 1 : 0.9;
  rows.forEach((row, place) => {
    picture.append(svg("path", { class: "always", d: cells("0".repeat(first), "0", 0, place, width) }));
    for (const [kind, bit] of [["ran", "0"], ["skipped", "1"]]) {
      picture.append(svg("path", { class: kind, d: cells(row, bit, first, place, width) }));
    }
  });
  return picture;
}

/** The cells of a row that have a bit, each of one token. */
function cells(row, bit, first, place, width) {
  let path = "";
  for (let at = 0; at < row.length; at++) {
    if (row[at] === bit) path += `M${first + at} ${place}h${width}v.85h-${width}z`;
  }
  return path;
}
