// How numbers, times and names are written. Pure: text out, nothing else.
//
// Ids, amounts and balances of look-ups come as strings of digits, because they may be larger than
// a number of JavaScript holds exactly; they stay strings, or become BigInt, and are never rounded.
// What is not known (null, undefined) is written as a dash.

export const NONE = "–";
export const U64_MAX = 2n ** 64n - 1n;

/** A whole number with its digits in groups of three: a number (rounded), a BigInt, or digits. */
export function grouped(value) {
  if (value === null || value === undefined) return NONE;
  const text = typeof value === "number" ? String(BigInt(Math.round(value))) : String(value);
  return text.replace(/\B(?=(\d{3})+$)/g, ",");
}

/** A number in at most five characters, such as 4.61M. */
export function compact(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 1000) return trickle(value);
  let left = value;
  for (const unit of ["k", "M", "G", "T"]) {
    left /= 1000;
    // 999.6 would be written with four digits, so it is one of the next unit.
    if (left < 999.5 || unit === "T") return `${threeDigits(left)}${unit}`;
  }
}

/** A rate; small ones with a decimal, so that a trickle is not shown as nothing. */
export function perSecond(value) {
  if (value === null || value === undefined) return NONE;
  return value > 0 && value < 10 ? trickle(value) : grouped(value);
}

/** A length of time in its two largest units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds + 0.05);
  const [days, hours, minutes] = [
    Math.floor(whole / 86400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  if (days) return `${grouped(days)} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

/** A time in milliseconds with three digits that mean something. */
export function milliseconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 9995)
    return `${value < 99_950 ? threeDigits(value / 1000) : grouped(value / 1000)} s`;
  if (value >= 999.5) return `${grouped(value)} ms`;
  return `${threeDigits(value)} ms`;
}

/** A time in nanoseconds, in the unit that suits it. */
export function nanoseconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 999_500) return milliseconds(value / 1e6);
  return value < 999.5 ? `${threeDigits(value)} ns` : `${threeDigits(value / 1000)} µs`;
}

/** A share of 1 in percent. */
export function percent(share) {
  if (share === 0) return "0%";
  return share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share < 0.00995 ? 1 : 0)}%`;
}

/** The time of day, in UTC, of a time in nanoseconds since 1970. */
export function clock(unixNs) {
  return new Date(unixNs / 1e6).toISOString().slice(11, 19);
}

/** What a machine calls insufficient_funds, as people write it. */
export function words(name) {
  return String(name).replaceAll("_", " ").toLowerCase();
}

/** Names in a row: "the wal", "the wal and the gateway", "a, b and c". */
export function list(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/**
 * A whole number of 64 bits that someone typed, without its separators; null if it is none.
 * Never rounded: 18446744073709551615 is itself, and one more is null.
 */
export function typedWhole(text) {
  const digits = text.replace(/[\s,'’_]/g, "");
  return /^[0-9]{1,40}$/.test(digits) && BigInt(digits) <= U64_MAX ? String(BigInt(digits)) : null;
}

function trickle(value) {
  return Number.isInteger(value) || value >= 10 ? String(Math.round(value)) : value.toFixed(1);
}

function threeDigits(value) {
  if (value >= 99.95) return String(Math.round(value));
  if (value >= 9.995) return value.toFixed(1);
  return value >= 0.01 || value === 0 ? String(Number(value.toFixed(2))) : value.toPrecision(1);
}
