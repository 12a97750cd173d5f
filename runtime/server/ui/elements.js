// Make elements. Text is always text: nothing here reads HTML, and the page's policy forbids it too.

const SVG = "http://www.w3.org/2000/svg";

/** An element of HTML with attributes and children; strings become text, and what is null is left out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Give an element other children. */
export function replace(element, ...children) {
  element.replaceChildren(...children.filter((each) => each !== null));
}

export const byId = (id) => document.getElementById(id);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((each) => each !== null));
  return element;
}
