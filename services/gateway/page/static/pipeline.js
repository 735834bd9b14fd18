// The pipeline: five services, and between them pipes that fill with what waits there.

import { attribute, byId, text } from "/dom.js";
import { compact, grouped, NONE, percent, perSecond, span } from "/format.js";
import { fullness, SERVICES } from "/state.js";

/** A mark for each state, so that no state is told by its colour alone. */
export const MARKS = {
  up: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-1.2 10.2L3.9 8.3l1.3-1.3 1.6 1.6 4-4 1.3 1.3-5.3 5.3Z",
  "not ready": "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.8a5.2 5.2 0 0 1 0 10.4V2.8Z",
  down: "M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1L5.1 1Zm.8 3.6L4.6 5.9 6.7 8l-2.1 2.1 1.3 1.3L8 9.3l2.1 2.1 1.3-1.3L9.3 8l2.1-2.1-1.3-1.3L8 6.7 5.9 4.6Z",
  unknown:
    "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.8a5.2 5.2 0 1 1 0 10.4A5.2 5.2 0 0 1 8 2.8ZM4.9 7.1v1.8h6.2V7.1H4.9Z",
};

export class Pipeline {
  #stages = new Map();
  #pipes = new Map();

  constructor(place) {
    for (const [stage, { title, does, level }] of Object.entries(SERVICES)) {
      if (this.#stages.size) {
        const pipe = byId("pipe-template").content.firstElementChild.cloneNode(true);
        pipe.dataset.before = stage;
        this.#pipes.set(stage, pipe);
        place.append(pipe);
      }
      const card = byId("stage-template").content.firstElementChild.cloneNode(true);
      card.dataset.stage = stage;
      text(card.querySelector("h3"), title);
      text(card.querySelector(".does"), does);
      text(card.querySelector(".level"), level);
      this.#stages.set(stage, card);
      place.append(card);
    }
  }

  /** Draws the rows of a report. */
  show(report) {
    const missing = report.metrics?.unreachable ?? {};
    report.stages.forEach((row, number) => {
      const card = this.#stages.get(row.stage);
      if (!card) return;
      this.#showStage(card, row, missing[row.stage]);
      const pipe = this.#pipes.get(row.stage);
      if (pipe) this.#showPipe(pipe, row, report.stages[number - 1], report.tx_per_s);
    });
    const limit = report.stages.find((row) => row.max_in_flight)?.max_in_flight;
    text(
      byId("pipe-legend"),
      "Between two stages: the transactions that wait there. " +
        (limit
          ? `A pipe is full at ${grouped(limit)}, on a logarithmic scale.`
          : "The scale is logarithmic."),
    );
  }

  #showStage(card, row, missing) {
    const put = (name, value) => text(card.querySelector(name), value);
    attribute(card, "data-state", row.state);
    put(".word", row.state);
    attribute(card.querySelector(".state path"), "d", MARKS[row.state] ?? MARKS.unknown);
    put(".index", grouped(row.index));
    const length = grouped(row.index).length;
    attribute(
      card.querySelector(".index"),
      "data-size",
      length > 17 ? "longest" : length > 13 ? "long" : null,
    );
    put(
      ".rate",
      row.tx_per_s === null
        ? NONE
        : `${row.tx_per_s < 1e6 ? perSecond(row.tx_per_s) : compact(row.tx_per_s)}/s`,
    );
    put(".keeps", keeps(row));
    put(".restarts", grouped(row.restarts));
    attribute(card.querySelector(".restarts"), "data-some", row.restarts ? "" : null);
    put(".uptime", span(row.uptime_s));
    put(
      ".heard",
      row.last_word_s === null
        ? "never"
        : row.last_word_s < 1
          ? "now"
          : `${span(row.last_word_s)} ago`,
    );
    put(".note", missing ? `no metrics: ${missing}` : "");
  }

  #showPipe(pipe, row, before, rate) {
    // The gateway sends batches, and has no index that the sequencer could be behind of.
    const batches = before.stage === "gateway";
    const waiting = batches ? before.in_flight : row.behind;
    const limit = before.max_in_flight || row.max_in_flight;
    const share = fullness(waiting, limit);
    text(
      pipe.querySelector(".waiting"),
      waiting !== null && waiting >= 1e6 ? compact(waiting) : grouped(waiting),
    );
    text(pipe.querySelector(".unit"), batches ? (waiting === 1 ? "batch" : "batches") : "waiting");
    attribute(
      pipe,
      "title",
      waiting === null
        ? null
        : `${grouped(waiting)} ${batches ? "batches" : "transactions"} between the ${before.stage} and the ${row.stage}`,
    );
    const fill = pipe.querySelector(".fill");
    // They wait at the door of the next stage: the pipe fills from its far end.
    attribute(fill, "x", `${(100 * (1 - share)).toFixed(2)}%`);
    attribute(fill, "width", `${(100 * share).toFixed(2)}%`);
    attribute(pipe, "data-full", waiting && limit && waiting > limit / 2 ? "" : null);
    attribute(pipe, "data-flows", rate > 0 && row.state === "up" ? "" : null);
  }
}

function keeps(row) {
  if (row.retained === null) return NONE;
  const number = row.retained < 1e6 ? grouped(row.retained) : compact(row.retained);
  return row.max_in_flight ? `${number} (${percent(row.retained / row.max_in_flight)})` : number;
}
