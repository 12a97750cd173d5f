// Numbers as people read them.

/** Three digits, or all of a larger whole number. */
export function three(value) {
  const size = Math.abs(value);
  const digits = size >= 99.5 || value === 0 ? 0 : size >= 9.95 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Milliseconds, as seconds from 1 s on; the space does not break. */
export const time = (ms) => (ms === null ? "–" : ms < 999.5 ? `${three(ms)}\u00a0ms` : `${three(ms / 1000)}\u00a0s`);

/** The same for the end of an axis, which is 1, 2 or 5 with zeros. */
export const roundTime = (ms) => (ms < 999.5 ? `${ms}\u00a0ms` : `${ms / 1000}\u00a0s`);

export const whole = (value) => Math.round(value).toLocaleString("en");

export const percent = (share) => (share > 0 && share < 0.005 ? "<1\u00a0%" : `${Math.round(share * 100)}\u00a0%`);

/** "1 token", "2 tokens". */
export const counted = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

/** How long ago something was, from seconds. */
export function ago(seconds) {
  if (seconds < 2) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
}
