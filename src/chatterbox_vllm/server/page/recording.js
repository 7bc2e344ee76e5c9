// A button that starts and ends a recording.

import { duration } from "./dom.js";
import { Recorder } from "./recorder.js";

/**
 * @param {HTMLButtonElement} button
 * @param {HTMLMeterElement | null} meter shows how loud it is
 * @param {(file: File) => void} done
 * @param {(error: Error) => void} failed
 * @returns {Recorder}
 */
export function recordWith(button, meter, done, failed) {
  const words = button.querySelector(".words");
  const recorder = new Recorder((seconds, level) => {
    words.textContent = `Stop, ${duration(Math.floor(seconds))}`;
    if (meter) meter.value = level;
  });
  const show = (isOn) => {
    button.setAttribute("aria-pressed", isOn);
    words.textContent = isOn ? "Stop" : "Record";
    if (meter) meter.hidden = !isOn;
  };
  button.addEventListener("click", async () => {
    if (recorder.isBusy) {
      recorder.stop();
      return;
    }
    show(true);
    try {
      done(await recorder.record());
    } catch (error) {
      failed(error);
    } finally {
      show(false);
    }
  });
  return recorder;
}
