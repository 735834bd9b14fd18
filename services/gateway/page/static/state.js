// What the page knows of the ledger, and what it says about it in a sentence. Pure: reads no clock,
// touches no document.
//
// A report is what /api/report tells (docs/page.md). Parts that a report lacks because a service's
// metrics are missing keep what was told last, marked as old, so that nothing jumps or vanishes.

import { clock, list, span, words } from "/format.js";

/** All services, in the order in which a transaction passes them. */
export const SERVICES = {
  gateway: { title: "Gateway", does: "talks to clients", level: "sequenced" },
  sequencer: { title: "Sequencer", does: "gives ids", level: "sequenced" },
  transactor: { title: "Transactor", does: "executes", level: "computed" },
  wal: { title: "Log (WAL)", does: "makes durable", level: "committed" },
  snapshotter: { title: "Snapshotter", does: "makes readable", level: "readable" },
};

/** What it means that a service is away, for people who use the ledger. */
const WITHOUT = {
  gateway: "Clients get no answers.",
  sequencer: "New transactions wait until it is back; reads go on.",
  transactor: "Nothing is executed until it is back; reads go on.",
  wal: "Nothing becomes durable until it is back; reads go on.",
  snapshotter: "Balances cannot be read until it is back; transactions go on, up to committed.",
};

/** Who counts which failures. */
const FAILURES_OF = { transaction: "transactor", request: "gateway" };

export const HISTORY = 120;
/** A stage that keeps this share of its limit is full: the stage before it has to wait. */
const FULL = 0.95;
/** Without a report for this long, numbers are old. Reports come once a second. */
export const SILENT_MS = 3500;

export class State {
  constructor() {
    this.report = null;
    /** Rates of the last reports, oldest first; null where there was no answer. */
    this.history = [];
    this.latency = { rows: [], note: "" };
    this.failures = { rows: [], note: "" };
    this.segment = { row: null, note: "" };
  }

  /** Takes a report, as it was told. */
  take(report) {
    this.report = report;
    this.history = Array.isArray(report.history)
      ? report.history.slice(-HISTORY)
      : [...this.history, report.tx_per_s ?? null].slice(-HISTORY);
    const metrics = report.metrics ?? null;
    const latency = kept(this.latency, "rows", metrics?.latency, this.#missing(["gateway"]));
    this.latency = { ...latency, rows: latency.rows.map((row) => this.#remembered(row)) };
    this.failures = this.#failuresOf(metrics);
    this.segment = kept(this.segment, "row", metrics?.segment, this.#missing(["wal"]));
  }

  /** Failures of a service whose metrics are missing stay as they were told last. */
  #failuresOf(metrics) {
    const told = metrics?.failures ?? [];
    const silent = (row) =>
      metrics === null || FAILURES_OF[row.what] in (metrics.unreachable ?? {});
    const old = this.failures.rows.filter(
      (row) =>
        silent(row) && !told.some((each) => each.what === row.what && each.reason === row.reason),
    );
    return { rows: [...old, ...told], note: this.#missing(Object.values(FAILURES_OF)) };
  }

  /** A level that nobody waited for in the last second keeps its last percentiles, as `past`. */
  #remembered(row) {
    const last = this.latency.rows.find((each) => each.level === row.level);
    if (row.p50_ms !== null || (last?.p50_ms ?? null) === null) return row;
    return { ...row, p50_ms: last.p50_ms, p99_ms: last.p99_ms, past: true };
  }

  /** Why the metrics of these stages are missing; "" when they are there. */
  #missing(stages) {
    const { metrics, metrics_hint: hint, answers } = this.report;
    if (!metrics) return hint ? `No metrics: ${hint}` : "No metrics yet.";
    const missing = stages.filter((stage) => stage in (metrics.unreachable ?? {}));
    if (missing.length) {
      return missing
        .map((stage) => `No metrics from the ${stage}: ${metrics.unreachable[stage]}`)
        .join(". ");
    }
    return answers ? "" : "As of the last answer.";
  }
}

/** New rows where they were told whole; else the old ones, with a note that says why. */
function kept(old, name, told, missing) {
  const empty = told === null || told === undefined || told.length === 0;
  if (!missing) return { [name]: told ?? old[name], note: "" };
  return { [name]: empty ? old[name] : told, note: missing };
}

/**
 * The state of the ledger in a sentence.
 *
 * `link`: "connecting", "live" or "lost"; `silentMs`: since the last report came. Returns `level`
 * (ok, warn, bad, lost or wait), `text`, which changes only when the state does, `detail`, and
 * `short` for the page's title.
 */
export function verdict(report, link, silentMs) {
  if (report === null) {
    return link === "lost"
      ? {
          level: "lost",
          text: "No connection to the gateway.",
          detail: "Is it running, and its page switched on? Trying again every second.",
          short: "No connection",
        }
      : { level: "wait", text: "Connecting to the gateway …", detail: "", short: "Connecting" };
  }
  if (link !== "live") {
    return {
      level: "lost",
      text: "Connection to the gateway lost.",
      detail: `The numbers are of ${clock(report.unix_ns)} UTC, ${ago(silentMs / 1000)}. Trying again every second.`,
      short: "Connection lost",
    };
  }
  if (!report.answers) {
    const since = report.lost_s ? ` for ${ago(report.lost_s, "")}` : "";
    return {
      level: "bad",
      text: "The ledger does not answer.",
      detail: `${sentence(report.error)}No answer${since}; the numbers are older than that.`,
      short: "No answer",
    };
  }
  const inState = (state) =>
    report.stages.filter((row) => row.state === state).map((row) => row.stage);
  const down = inState("down");
  if (down.length) {
    const since = report.stages.find((row) => row.stage === down[0]).last_word_s;
    const heard =
      down.length > 1
        ? ""
        : since === null
          ? "It was not heard yet. "
          : `Last heard ${ago(since)}. `;
    return {
      level: "bad",
      text: `${capital(list(down.map(the)))} ${down.length > 1 ? "are" : "is"} down.`,
      detail:
        heard +
        down
          .map((stage) => WITHOUT[stage])
          .slice(0, 2)
          .join(" "),
      short: down.length > 2 ? `${down.length} services down` : `${list(down)} down`,
    };
  }
  const unready = inState("not ready");
  if (unready.length) {
    return {
      level: "warn",
      text: `${capital(list(unready.map(the)))} ${unready.length > 1 ? "are" : "is"} not ready.`,
      detail: reasons(report.not_ready ?? {}),
      short: `${list(unready)} not ready`,
    };
  }
  const unknown = inState("unknown");
  if (unknown.length) {
    return {
      level: "warn",
      text: `Nothing is known of ${list(unknown.map(the))}.`,
      detail: "",
      short: "Unknown",
    };
  }
  const full = report.stages.filter(
    (row) => row.max_in_flight && row.retained >= FULL * row.max_in_flight,
  );
  if (full.length) {
    return {
      level: "warn",
      text: `${capital(the(full[0].stage))} keeps all that it may.`,
      detail: "It takes no more until some of it is durable; clients are told to slow down.",
      short: `${full[0].stage} full`,
    };
  }
  const silent = Object.keys(report.metrics?.unreachable ?? {});
  const detail = silent.length ? `No metrics from ${list(silent.map(the))}.` : "";
  return { level: "ok", text: "All five services are up.", detail, short: "" };
}

/** How full a pipe is, from 0 to 1. Logarithmic: queues of 100 and of 100,000 both matter. */
export function fullness(waiting, limit) {
  if (!waiting || waiting < 0) return 0;
  return Math.min(1, Math.log1p(waiting) / Math.log1p(limit || 1_048_576));
}

/** Of what was told last, the highest rate; null when there is none. */
export function highest(history) {
  return history.reduce(
    (top, each) => (each !== null && (top === null || each > top) ? each : top),
    null,
  );
}

/** Why stages are not ready, as they say it themselves. */
function reasons(told) {
  const stages = Object.entries(told);
  const of = (stage) => (stages.length > 1 ? `${capital(words(stage))}: ` : "");
  return (
    stages.map(([stage, why]) => `${of(stage)}${sentence(why.join("; "))}`).join("") ||
    "Up, but still recovering, or without a neighbour in the pipeline."
  );
}

function ago(secondsPassed, suffix = " ago") {
  return `${secondsPassed < 60 ? `${Math.round(secondsPassed)} s` : span(secondsPassed)}${suffix}`;
}

function the(stage) {
  return `the ${words(stage)}`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function sentence(text) {
  return text ? `${capital(text.replace(/[.\s]+$/, ""))}. ` : "";
}
