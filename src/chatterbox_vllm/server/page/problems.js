// Shows what went wrong beside what it is about.

import { $ } from "./dom.js";

// Fields of the API whose control has another id.
const CONTROLS = { input: "text", ref_audio: "voice" };

/** Show a failure in the place of the field that it names, or else in `place`. */
export function show(error, place = "problem") {
  const named = CONTROLS[error.param] ?? error.param;
  const here = named && $(`${named}-problem`) ? named : null;
  const target = $(here ? `${here}-problem` : place);
  target.textContent = words(error);
  target.closest("details")?.setAttribute("open", "");
  if (here) {
    $(here).setAttribute("aria-invalid", "true");
    $(here).focus();
  }
  target.scrollIntoView({ block: "nearest" });
}

/** Take back all that was shown. */
export function clear() {
  for (const place of document.querySelectorAll(".problem")) place.textContent = "";
  for (const control of document.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
}

function words(error) {
  const message = error.message.replace(/^./, (letter) => letter.toUpperCase());
  if (error.status === 429) return `The server is busy. ${message}${again(error)}`;
  if (error.status === 503) return `${message}${again(error)}`;
  return message;
}

const again = ({ retryAfter }) =>
  retryAfter ? `. Try again in ${retryAfter} ${retryAfter === 1 ? "second" : "seconds"}.` : "";
