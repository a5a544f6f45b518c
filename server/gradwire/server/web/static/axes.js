// Where an axis has its places: uPlot's own ways know no steps that are whole, and no values beyond 1e-32 and 1e32.

import { labels } from "./format.js";

const apart = (digits, from, to) => Array.from({ length: to - from }, (_, at) => digits.map((digit) => Number(`${digit}e${from + at}`))).flat();
const STEPS_APART = apart([1, 2, 5], 0, 17);
const VALUES_APART = apart([1, 2, 2.5, 5], -32, 308);
const MOST_POWERS = 7;

const values = (_, places) => labels(places);

/** For uPlot, of an axis of steps. */
export const ofSteps = (log) => (log ? LOGARITHMIC : { values, incrs: STEPS_APART });

/** For uPlot, of an axis of values. */
export const ofValues = (log) => (log ? LOGARITHMIC : { values, incrs: VALUES_APART });

/** Powers of ten, few enough to be told apart, and where there are very few what lies between them. */
export function powers(min, max) {
  const first = Math.max(-324, Math.floor(Math.log10(min)));
  const last = Math.min(308, Math.ceil(Math.log10(max)));
  const each = Math.max(1, Math.ceil((last - first) / MOST_POWERS));
  const digits = last - first > 3 ? [1] : [1, 2, 3, 4, 5, 6, 7, 8, 9];
  const found = [];
  for (let power = Math.ceil(first / each) * each; power <= last; power += each) {
    for (const digit of digits) found.push(Number(`${digit}e${power}`));
  }
  return found.filter((place) => place >= min && place <= max);
}

/** What lies between powers has lines, and labels only where there is room. */
function labelled(places) {
  const wanted = places.length > 20 ? [1] : places.length > 10 ? [1, 3] : [1, 2, 3, 5, 7];
  return places.map((place) => (wanted.includes(Number(place.toExponential()[0])) ? place : null));
}

const LOGARITHMIC = {
  values,
  incrs: VALUES_APART, // else there may be no axis
  splits: (_, axis, min, max) => powers(min, max),
  filter: (_, places) => labelled(places),
};
