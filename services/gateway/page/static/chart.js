// The history of a rate as an area, drawn as SVG at the size that its place has.
//
// Values come oldest first, one for each second; null is a gap: then nobody knew.

import { attribute, drawn, text } from "/dom.js";
import { compact, perSecond, grouped } from "/format.js";
import { HISTORY, highest } from "/state.js";

const EDGE = { left: 52, right: 12, top: 12, bottom: 24 };
const LINES = 4;

export class Chart {
  #place;
  #svg = drawn("svg", { class: "plot", role: "img", width: "100%", height: "100%" });
  #grid = drawn("g", { class: "grid" });
  #area = drawn("path", { class: "area" });
  #line = drawn("path", { class: "line" });
  #last = drawn("circle", { class: "last", r: 3.5 });
  #cursor = drawn("g", { class: "cursor", visibility: "hidden" });
  #cursorLine = drawn("line", {});
  #cursorText = drawn("text", {});
  #values = [];
  #top = 1;
  #pointed = null;

  constructor(place) {
    this.#place = place;
    this.#cursor.append(this.#cursorLine, this.#cursorText);
    this.#svg.append(this.#grid, this.#area, this.#line, this.#last, this.#cursor);
    place.append(this.#svg);
    new ResizeObserver(() => this.#draw()).observe(place);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.#svg.addEventListener("pointerleave", () => this.#point(null));
  }

  /** Shows these rates. */
  show(values) {
    this.#values = values.slice(-HISTORY);
    this.#draw();
    const [now, top] = [values.at(-1) ?? null, highest(values)];
    attribute(
      this.#svg,
      "aria-label",
      `Transactions per second in the last two minutes: now ${perSecond(now)}, at most ${perSecond(top)}`,
    );
  }

  #size() {
    const { clientWidth: width, clientHeight: height } = this.#place;
    return { width, height, right: width - EDGE.right, bottom: height - EDGE.bottom };
  }

  #x(age) {
    return this.#size().right - (age / (HISTORY - 1)) * (this.#size().right - EDGE.left);
  }

  #y(value) {
    const { bottom } = this.#size();
    return bottom - (value / this.#top) * (bottom - EDGE.top);
  }

  #draw() {
    const { width, height, right, bottom } = this.#size();
    if (width < EDGE.left + EDGE.right + 10 || height < 60) return;
    this.#top = niceTop(highest(this.#values) ?? 0);
    this.#drawGrid(right, bottom);
    const areas = [];
    const lines = [];
    for (const run of runs(this.#values)) {
      const points = run.map(
        ([age, value]) => `${this.#x(age).toFixed(1)},${this.#y(value).toFixed(1)}`,
      );
      lines.push(`M${points.join("L")}${points.length === 1 ? "h0.1" : ""}`);
      areas.push(`M${this.#x(run[0][0]).toFixed(1)},${bottom}L${points.join("L")}V${bottom}Z`);
    }
    attribute(this.#line, "d", lines.join(""));
    attribute(this.#area, "d", areas.join(""));
    const now = this.#values.at(-1) ?? null;
    attribute(this.#last, "visibility", now === null ? "hidden" : "visible");
    if (now !== null) {
      attribute(this.#last, "cx", this.#x(0));
      attribute(this.#last, "cy", this.#y(now));
    }
    this.#drawCursor();
  }

  #drawGrid(right, bottom) {
    const parts = [];
    for (let step = 0; step <= LINES; step++) {
      const value = (this.#top * step) / LINES;
      const y = Math.round(this.#y(value)) + 0.5;
      parts.push(
        drawn("line", { x1: EDGE.left, x2: right, y1: y, y2: y, class: step ? "" : "base" }),
        drawn("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, tick(value)),
      );
    }
    for (const [age, name] of [
      [119, "2 min ago"],
      [60, "1 min ago"],
      [0, "now"],
    ]) {
      const anchor = age === 0 ? "end" : age === 60 ? "middle" : "start";
      parts.push(drawn("text", { x: this.#x(age), y: bottom + 18, "text-anchor": anchor }, name));
    }
    this.#grid.replaceChildren(...parts);
  }

  #point(x) {
    this.#pointed = x;
    this.#drawCursor();
  }

  #drawCursor() {
    const { right, bottom } = this.#size();
    const age =
      this.#pointed === null
        ? -1
        : Math.round(((right - this.#pointed) / (right - EDGE.left)) * (HISTORY - 1));
    const value = age < 0 || age >= HISTORY ? null : (this.#values.at(-1 - age) ?? null);
    attribute(this.#cursor, "visibility", value === null ? "hidden" : "visible");
    if (value === null) return;
    const x = this.#x(age);
    const onLeft = x > (right + EDGE.left) / 2;
    for (const [name, at] of Object.entries({ x1: x, x2: x, y1: EDGE.top, y2: bottom })) {
      attribute(this.#cursorLine, name, at);
    }
    attribute(this.#cursorText, "x", x + (onLeft ? -8 : 8));
    attribute(this.#cursorText, "y", EDGE.top + 10);
    attribute(this.#cursorText, "text-anchor", onLeft ? "end" : "start");
    text(this.#cursorText, `${value < 10 ? perSecond(value) : grouped(value)}/s, ${age} s ago`);
  }
}

/** Runs of values without gaps, as pairs of age (0 is now) and value. */
function runs(values) {
  const found = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null) {
      run = null;
      return;
    }
    if (!run) found.push((run = []));
    run.push([values.length - 1 - index, value]);
  });
  return found;
}

function tick(value) {
  return compact(value).replace(/\.0(?=\D|$)/, "");
}

/** The end of the axis: a round number that leaves the line some air, and divides well by four. */
function niceTop(value) {
  if (value <= 4) return 4;
  const unit = 10 ** Math.floor(Math.log10(value));
  return (
    [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12]
      .map((step) => step * unit)
      .find((top) => top >= value * 1.02) ?? value
  );
}
