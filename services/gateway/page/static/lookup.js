// Look-ups: an account's balance, a transaction. Asks /api/balance and /api/transaction, and shows
// the answer or the error in words. All numbers of an answer are strings of digits and stay that.

import { attribute, byId, element } from "/dom.js";
import { grouped, NONE, typedWhole, words } from "/format.js";

const PATIENCE_MS = 15_000;

/**
 * Makes the two forms work. `#account=7` and `#tx=5` in the address ask at once, and can be shared.
 * `drawn`: a promise that the page has its first report; until then nothing has found its place.
 */
export function start(drawn) {
  const balance = form(
    "balance",
    "account",
    "/api/balance?account=",
    "account=",
    showBalance,
    drawn,
  );
  const transaction = form(
    "transaction",
    "tx-id",
    "/api/transaction?id=",
    "tx=",
    showTransaction,
    drawn,
  );
  const ask = () => {
    const [, what, digits] = /^#(account|tx)=([0-9]{1,20})$/.exec(location.hash) ?? [];
    if (what) (what === "account" ? balance : transaction)(digits);
  };
  window.addEventListener("hashchange", ask);
  window.addEventListener("click", ({ target }) => {
    // The address does not change when it has the question already; it is asked again all the same.
    if (target.closest("a")?.hash === location.hash) ask();
  });
  ask();
}

/** Makes one form work; returns what asks for a number as if it was typed. */
function form(name, inputId, url, hash, show, drawn) {
  const input = byId(inputId);
  const place = byId(`${name}-answer`);
  let running = null;
  const submit = async () => {
    running?.abort(); // a new question makes the old one's answer unwanted
    const mine = (running = new AbortController());
    const digits = typedWhole(input.value);
    attribute(input, "aria-invalid", digits === null ? "true" : null);
    if (digits === null) {
      place.replaceChildren(
        problem(`Type a whole number from 0 to ${grouped("18446744073709551615")}.`),
      );
      return;
    }
    history.replaceState(null, "", `#${hash}${digits}`);
    place.setAttribute("aria-busy", "true");
    const found = await fetched(url + digits, mine);
    if (running !== mine) return;
    place.removeAttribute("aria-busy");
    place.replaceChildren(...(found.error ? [problem(found.error)] : show(found.answer)));
  };
  byId(`${name}-form`).addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  return async (digits) => {
    input.value = digits;
    await submit();
    await drawn;
    place.parentElement.scrollIntoView({ block: "nearest" });
  };
}

/** `{answer}` or `{error}`, a sentence for people. */
async function fetched(url, controller) {
  const timer = setTimeout(() => controller.abort(), PATIENCE_MS);
  try {
    const response = await fetch(url, { signal: controller.signal, cache: "no-store" });
    let body;
    try {
      body = await response.json();
    } catch {
      return {
        error: `The gateway gave an answer that this page does not understand (HTTP ${response.status}).`,
      };
    }
    if (response.ok) return { answer: body };
    return {
      error:
        typeof body?.error === "string"
          ? sentence(body.error)
          : `The gateway refused (HTTP ${response.status}).`,
    };
  } catch {
    return controller.signal.aborted
      ? { error: `No answer within ${PATIENCE_MS / 1000} s.` }
      : { error: "The gateway cannot be reached. Is it running?" };
  } finally {
    clearTimeout(timer);
  }
}

function problem(message) {
  return element("p", { class: "problem" }, message);
}

function sentence(message) {
  return /[.!?]$/.test(message) ? message : `${message}.`;
}

function showBalance(answer) {
  return [
    element(
      "p",
      { class: "found" },
      element("span", { class: "medium", id: "balance" }, grouped(answer.balance)),
    ),
    element(
      "p",
      { class: "muted small" },
      "Balance of account ",
      number(answer.account),
      ", as of transaction ",
      link("tx", answer.last_snapshot_tx_id),
      ".",
    ),
  ];
}

/** Facts in the order shown: name, and how it is written (null: left out where there is none). */
function facts(answer) {
  const plain = (value) => (value === null || value === undefined ? null : String(value));
  const whole = (value) => (value === null || value === undefined ? null : grouped(value));
  const account = (value) =>
    value === null || value === undefined ? null : link("account", value);
  const isCall = answer.kind === "FUNCTION";
  return [
    ["time", plain(answer.time)],
    ["kind", answer.kind ? words(answer.kind) : null],
    ["stage", answer.stage ? words(answer.stage) : null],
    ["account", account(answer.account)],
    ["from", account(answer.source)],
    ["to", account(answer.target)],
    ["amount", whole(answer.amount)],
    ["function", callee(answer)],
    ["parameters", isCall ? parameters(answer.params ?? []) : null],
    ["user_ref", plain(answer.user_ref) === "0" ? "none" : plain(answer.user_ref)],
    ["duplicate of", answer.duplicate_of == null ? null : link("tx", answer.duplicate_of)],
    ["term", plain(answer.term)],
  ];
}

function parameters(told) {
  if (!told.length) return "none";
  return element(
    "div",
    { class: "params" },
    ...told.map((each) => element("span", {}, grouped(each))),
  );
}

function callee(answer) {
  if (answer.function === null || answer.function === undefined)
    return answer.kind?.startsWith("FUNCTION") ? "not known" : null;
  const version = answer.version == null ? "" : ` version ${answer.version}`;
  return `${answer.function}${version}${answer.crc32c ? `, crc32c ${answer.crc32c}` : ""}`;
}

function showTransaction(answer) {
  const done = answer.status === "NONE";
  const head = element(
    "p",
    { class: "found" },
    element("span", { class: "medium", id: "transaction" }, grouped(answer.tx_id)),
    element(
      "span",
      { class: `tag ${done ? "good" : "bad"}`, id: "status" },
      done ? "succeeded" : words(answer.status),
    ),
  );
  const terms = facts(answer)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return [head, element("dl", { class: "facts rows" }, ...terms), entries(answer.entries ?? [])];
}

function entries(told) {
  if (!told.length) return element("p", { class: "muted small" }, "No entries: it moved nothing.");
  const row = ({ account, direction, amount }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, link("account", account)),
      element("td", { class: "number" }, direction === "CREDIT" ? grouped(amount) : ""),
      element("td", { class: "number" }, direction === "DEBIT" ? grouped(amount) : ""),
    );
  const heads = ["account", "credit", "debit"].map((name, index) =>
    element("th", { scope: "col", class: index ? "number" : "" }, name),
  );
  return element(
    "table",
    { class: "entries" },
    element("caption", { class: "hidden" }, "Entries"),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...told.map(row)),
  );
}

/** A number that asks for itself when it is followed. */
function link(what, digits) {
  if (digits === null || digits === undefined) return NONE;
  return /^[0-9]+$/.test(String(digits))
    ? element("a", { href: `#${what}=${digits}` }, grouped(digits))
    : String(digits);
}

function number(digits) {
  return element("span", {}, grouped(digits));
}
