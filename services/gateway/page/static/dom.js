// Small help with the document. Text of the server gets in through `text` and `element` alone,
// which make text of it, whatever it looks like: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings among the children become text. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Writes text, only if it differs: what did not change is not laid out or read out again. */
export function text(node, value) {
  const wanted = String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Sets an attribute, only if it differs; null takes it away. */
export function attribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Makes a table have `count` rows; new ones have a header and cells of these classes. */
export function rows(body, count, cells) {
  while (body.rows.length > count) body.lastElementChild.remove();
  while (body.rows.length < count) {
    const head = element("th", { scope: "row" });
    body.append(element("tr", {}, head, ...cells.map((name) => element("td", { class: name }))));
  }
  return [...body.rows];
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
