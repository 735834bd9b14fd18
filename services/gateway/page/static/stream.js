// The stream of reports (/events), and whether it is alive.
//
// An EventSource comes back by itself after most failures, not after all: it gives up on an answer
// that is no stream (too many viewers), and does not notice a connection that just went silent (a
// laptop that slept, a tunnel that died). So a watchdog makes a new one.

import { SILENT_MS } from "/state.js";

const RETRY_MS = 1000;
/** A connection that is open and silent for this long is given up. */
const DEAD_MS = 8000;

/**
 * Calls `onReport(report)` for each report and `onLink("connecting" | "live" | "lost")` when that
 * changed. Never ends.
 */
export function follow(onReport, onLink) {
  let source = null;
  let opened = 0;
  let heard = null;
  let link = "connecting";

  const tell = (now) => {
    if (now === link) return;
    link = now;
    onLink(now);
  };
  const open = () => {
    source?.close();
    opened = performance.now();
    source = new EventSource("/events");
    source.addEventListener("report", (event) => {
      let report;
      try {
        report = JSON.parse(event.data);
      } catch {
        return; // cut off in the middle; the watchdog notices if no other follows
      }
      heard = performance.now();
      onReport(report);
      tell("live");
    });
    source.addEventListener("error", () => tell("lost"));
  };
  open();
  setInterval(() => {
    const now = performance.now();
    if (link === "live" && now - heard > SILENT_MS) tell("lost");
    const closed = source.readyState === EventSource.CLOSED;
    if (now - opened > RETRY_MS && closed) open();
    else if (now - Math.max(opened, heard ?? 0) > DEAD_MS) open();
  }, 250);
  return { silentMs: () => (heard === null ? 0 : performance.now() - heard) };
}
