// Small helpers for the document.

/** The element of an id. */
export const $ = (id) => document.getElementById(id);

/** Seconds as a clock: 1:02.3. */
export const clock = (seconds) => {
  const tenths = Math.floor(10 * seconds + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
};

/** A duration in words: 120 ms, 3.4 s. */
export const duration = (seconds) =>
  seconds < 0.995 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;

/** Let the browser save a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
