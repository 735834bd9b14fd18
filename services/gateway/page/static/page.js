// The page: takes the stream of reports and has each part drawn.
//
//   stream.js    the reports, and whether they still come
//   state.js     what is known, and the sentence that sums it up
//   pipeline.js  stages and pipes      chart.js   the history      panels.js  tables
//   lookup.js    balance and transaction
//   format.js    numbers as text       dom.js     elements; the only way for text to get in

import { Chart } from "/chart.js";
import { attribute, byId, text } from "/dom.js";
import { clock, compact, grouped, perSecond } from "/format.js";
import { start as startLookUps } from "/lookup.js";
import { showFailures, showFunctions, showLatency, showSegment } from "/panels.js";
import { MARKS, Pipeline } from "/pipeline.js";
import { highest, State, verdict } from "/state.js";
import { follow } from "/stream.js";

const LINKS = { connecting: "Connecting", live: "Live", lost: "No connection" };
const LEVEL_MARKS = { ok: "up", warn: "not ready", bad: "down", lost: "unknown", wait: "unknown" };
const ICONS = {
  ok: "/icon.svg",
  wait: "/icon.svg",
  warn: "/icon-trouble.svg",
  bad: "/icon-trouble.svg",
  lost: "/icon-lost.svg",
};

const state = new State();
const chart = new Chart(byId("chart"));
const pipeline = new Pipeline(byId("pipeline"));
let link = "connecting";

function showReport() {
  const report = state.report;
  text(byId("clock"), `${clock(report.unix_ns)} UTC`);
  text(byId("term"), report.term === null ? "" : `term ${grouped(report.term)}`);
  text(byId("endpoint"), report.endpoint ?? "");
  text(byId("version"), report.version ? `Tallybus ${report.version}` : "Tallybus");
  text(byId("rate"), perSecond(report.tx_per_s));
  text(byId("rate-peak"), perSecond(highest(state.history)));
  text(byId("in-flight"), grouped(report.in_flight));
  text(byId("committed"), grouped(report.stages.find((row) => row.stage === "wal")?.index));
  chart.show(state.history);
  pipeline.show(report);
  showLatency(state.latency);
  showFailures(state.failures);
  showSegment(state.segment);
  showFunctions(report.functions, report.functions_error);
}

function showVerdict() {
  const { report } = state;
  const said = verdict(report, link, stream.silentMs());
  const old = report !== null && (link !== "live" || !report.answers);
  attribute(document.body, "data-link", link);
  attribute(document.body, "data-old", old ? "" : null);
  attribute(byId("verdict"), "data-level", said.level);
  attribute(byId("verdict-mark"), "d", MARKS[LEVEL_MARKS[said.level]]);
  text(byId("verdict-text"), said.text);
  text(byId("verdict-detail"), said.detail);
  text(byId("link"), LINKS[link]);
  attribute(byId("icon"), "href", ICONS[said.level]);
  const title =
    said.short || (report?.tx_per_s == null ? "up" : `${compact(report.tx_per_s)} tx/s`);
  if (document.title !== `${title} – Tallybus`) document.title = `${title} – Tallybus`;
}

let tellDrawn;
const drawn = new Promise((resolve) => (tellDrawn = resolve));
const stream = follow(
  (report) => {
    state.take(report);
    showReport();
    showVerdict();
    tellDrawn();
  },
  (now) => {
    link = now;
    showVerdict();
  },
);
// How long ago the last report came is told as it grows.
setInterval(showVerdict, 1000);
showVerdict();
showLatency(state.latency);
showFailures({ rows: [], note: "" });
startLookUps(drawn);
