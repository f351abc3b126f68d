// Quantities in words: the rules of kvant.units, and the same table of tests.

const UNITS = [["kB", 1e3, 1], ["MB", 1e6, 1], ["GB", 1e9, 2]];

/** A size for people: 105.5 MB. */
export function bytes(n) {
  if (n === null || n === undefined) return "–";
  if (Math.abs(n) < 999.5) return `${Math.round(n)} ${Math.round(n) === 1 ? "byte" : "bytes"}`;
  for (const [unit, factor, places] of UNITS) {
    const text = (n / factor).toFixed(places);
    if (Math.abs(Number(text)) < 1000) return `${text} ${unit}`;
  }
  return `${(n / 1e12).toFixed(2)} TB`;
}

/** A number of weights for people: 134.5 M. */
export function weights(n) {
  if (n < 1e6) return n.toLocaleString("en");
  return n < 999.95e6 ? `${(n / 1e6).toFixed(1)} M` : `${(n / 1e9).toFixed(2)} B`;
}

/** A speed or time in three digits: 118, 72.4, 6.10. */
export function digits(n) {
  const places = [2, 1, 0].find((p) => p === 0 || Number(n.toFixed(p)) < 10 ** (3 - p));
  return n.toFixed(places);
}
