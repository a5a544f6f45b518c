// Numbers, sizes and times as people read them.

const whole = new Intl.NumberFormat("en-US");
const long = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 15 });
const digits = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 5 });

/** A count, in groups of three digits. */
export const count = (value) => whole.format(value);

/** A count in at most four characters and a letter: 12.3M; what is larger than letters tell as 1.2e16. */
export function short(value) {
  if (Math.abs(value) >= 1e15) return trim(value.toExponential(2));
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${trim((value / size).toPrecision(3))}${unit}`;
  }
  return trim(value.toPrecision(3));
}

/** Labels of an axis: as short as tells them apart. */
export function labels(values) {
  const shortest = values.map((each) => (each === null ? "" : short(each)));
  if (new Set(shortest).size === shortest.length || values.includes(null)) return shortest;
  return values.map((each) => long.format(each));
}

/** Without zeros that say nothing: 1.50 as 1.5, 1.00e+16 as 1e16. */
const trim = (text) => (text.includes(".") ? text.replace(/\.?0*(?:e\+?|$)/, (end) => (end.includes("e") ? "e" : "")) : text);

/** A measured value. */
export function value(found) {
  if (found === null || found === undefined) return "not finite";
  if (found === 0) return "0";
  const size = Math.abs(found);
  if (size >= 1e5 && size < 1e9) return digits.format(found);
  if (size >= 1e9 || size < 1e-3) return trim(found.toExponential(3));
  return trim(found.toPrecision(5));
}

/** Bytes. */
export function bytes(size) {
  for (const [power, unit] of [[4, "TiB"], [3, "GiB"], [2, "MiB"], [1, "KiB"]]) {
    if (size >= 1024 ** power) return `${trim((size / 1024 ** power).toPrecision(3))} ${unit}`;
  }
  return `${size} B`;
}

/** A short duration: of one block. */
export function duration(seconds) {
  if (seconds < 1e-3) return `${trim((seconds * 1e6).toPrecision(3))} µs`;
  if (seconds < 1) return `${trim((seconds * 1e3).toPrecision(3))} ms`;
  return `${trim(seconds.toPrecision(3))} s`;
}

/** For how long, in one unit. */
export function span(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

/** How long ago; `seconds` since 1970. */
export function ago(seconds) {
  const since = Date.now() / 1000 - seconds;
  return since < 2 ? "now" : `${span(since)} ago`;
}

/** A moment, as the reader's own clock has it. */
export const moment = (seconds) => new Date(seconds * 1000).toLocaleString();

/** What a run is called in a list: "runs/" says nothing there. */
export function title(name) {
  const found = /^tenants\/([^/]+)\/runs\/(.+)$/.exec(name);
  return found ? `${found[1]} / ${found[2]}` : name.replace(/^runs\//, "");
}
