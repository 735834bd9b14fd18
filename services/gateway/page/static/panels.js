// Latency, failures, segment and functions: rows of a report into tables that stay as they are, so
// that nothing jumps while numbers change.

import { attribute, byId, drawn, rows, text } from "/dom.js";
import {
  compact,
  grouped,
  milliseconds,
  nanoseconds,
  NONE,
  percent,
  perSecond,
  span,
  words,
} from "/format.js";

/** What a request waits for, in words; in the order shown. */
const LEVELS = {
  none: "an id",
  computed: "computed",
  committed: "committed",
  snapshot: "snapshot",
  read: "a read",
};
/** Ends of the scale of latencies. */
const SCALE_MS = [0.1, 10_000];

function note(panel, message) {
  text(byId(`${panel}-note`), message);
  attribute(byId(`${panel}-panel`), "data-old", message ? "" : null);
}

export function showLatency({ rows: told, note: why }) {
  const byLevel = new Map(told.map((row) => [row.level, row]));
  const body = byId("latency").tBodies[0];
  const lines = rows(body, Object.keys(LEVELS).length, ["number", "number", "number", "scale"]);
  Object.entries(LEVELS).forEach(([level, name], index) => {
    const row = byLevel.get(level) ?? { per_s: null, p50_ms: null, p99_ms: null };
    const [head, rate, p50, p99, scale] = lines[index].cells;
    attribute(lines[index], "data-level", level);
    attribute(lines[index], "data-past", row.past ? "" : null);
    attribute(
      lines[index],
      "title",
      row.past ? "Nothing in the last second; these are the last times." : null,
    );
    text(head, name);
    text(rate, often(row.per_s));
    text(p50, milliseconds(row.p50_ms));
    text(p99, milliseconds(row.p99_ms));
    showRange(scale, row.p50_ms, row.p99_ms);
  });
  note("latency", why);
}

/** The way from the median to the 99th percentile, on a logarithmic scale. */
function showRange(cell, p50, p99) {
  if (!cell.firstChild) {
    cell.append(
      drawn(
        "svg",
        { width: "100%", height: 14, "aria-hidden": "true" },
        drawn("line", { class: "range-back", x1: "2%", x2: "98%", y1: 7, y2: 7 }),
        drawn("line", { class: "range", y1: 7, y2: 7 }),
        drawn("circle", { class: "p50", cy: 7, r: 4 }),
        drawn("rect", { class: "p99", y: 2, width: 3, height: 10 }),
      ),
    );
  }
  const [, range, dot, end] = cell.firstChild.children;
  attribute(cell.firstChild, "class", p50 === null ? "empty" : "");
  if (p50 === null) return;
  const [from, to] = [place(p50), place(p99)];
  attribute(range, "x1", from);
  attribute(range, "x2", to);
  attribute(dot, "cx", from);
  attribute(end, "x", to);
}

function place(ms) {
  const [low, high] = SCALE_MS.map(Math.log);
  const share = (Math.log(Math.max(ms, SCALE_MS[0])) - low) / (high - low);
  return `${(2 + 96 * Math.min(1, share)).toFixed(1)}%`;
}

export function showFailures({ rows: told, note: why }) {
  const body = byId("failures").tBodies[0];
  const lines = rows(body, Math.max(1, told.length), ["number", "number"]);
  if (told.length === 0) {
    const [head, total, rate] = lines[0].cells;
    attribute(lines[0], "data-empty", "");
    text(head, why ? NONE : "none since the start");
    text(total, "");
    text(rate, "");
  }
  told.forEach((row, index) => {
    const [head, total, rate] = lines[index].cells;
    attribute(lines[index], "data-empty", null);
    attribute(lines[index], "data-reason", `${row.what} ${row.reason}`);
    text(head, row.what === "request" ? `${words(row.reason)} (request)` : words(row.reason));
    text(total, large(row.total));
    text(rate, often(row.per_s));
  });
  note("failures", why);
}

export function showSegment({ row, note: why }) {
  const share = row && row.capacity ? Math.min(1, row.transactions / row.capacity) : 0;
  text(byId("segment-number"), row ? `Segment ${grouped(row.number)}` : NONE);
  text(byId("segment-share"), row ? `${percent(share)} full` : "");
  attribute(byId("segment-fill"), "width", `${(100 * share).toFixed(2)}%`);
  text(
    byId("segment-count"),
    row ? `${grouped(row.transactions)} of ${grouped(row.capacity)}` : NONE,
  );
  text(byId("segment-full-in"), row?.full_in_s == null ? NONE : span(row.full_in_s));
  const last = row?.snapshot_segment ?? null;
  text(byId("snapshot"), last === null ? NONE : last ? `of segment ${grouped(last)}` : "none yet");
  const writing = row?.snapshot_writing ?? null;
  text(byId("snapshot-writing"), writing === null ? NONE : writing ? "writing one now" : "idle");
  note("segment", why);
}

/** A rate, in full as long as it fits its column. */
function often(value) {
  return value >= 1e5 ? compact(value) : perSecond(value);
}

/** A number, in full as long as it fits its column. */
function large(value) {
  return value >= 1e9 ? compact(value) : grouped(value);
}

const FUNCTION_CELLS = ["version", "calls", "calls/s", "failures", "mean fuel", "mean time"];

export function showFunctions(functions, error) {
  const body = byId("functions").tBodies[0];
  const told = functions ?? [];
  const lines = rows(body, Math.max(1, told.length), [
    ...FUNCTION_CELLS.map(() => "number"),
    "why",
  ]);
  if (told.length === 0) {
    attribute(lines[0], "data-empty", "");
    [...lines[0].cells].forEach((cell, index) =>
      text(cell, index ? "" : functions ? "none registered" : NONE),
    );
  }
  told.forEach((row, index) => {
    attribute(lines[index], "data-empty", null);
    const failed = Object.entries(row.failures);
    const values = [
      row.name,
      row.version ? grouped(row.version) : NONE, // "(others)" has none
      large(row.calls),
      often(row.calls_per_s),
      large(failed.reduce((sum, [, number]) => sum + number, 0)),
      large(row.fuel_mean),
      nanoseconds(row.mean_ns),
      failed.map(([name, number]) => `${words(name)}: ${grouped(number)}`).join(", ") || NONE,
    ];
    [...lines[index].cells].forEach((cell, column) => {
      text(cell, values[column]);
      if (column) attribute(cell, "data-label", [...FUNCTION_CELLS, "failed with"][column - 1]);
    });
  });
  note("functions", error ? `not read: ${error}` : "");
}
