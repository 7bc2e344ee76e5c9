// The dialog that puts a clip into the server's library, with the speaker's consent.

import { postForm } from "./api.js";
import { $ } from "./dom.js";
import * as problems from "./problems.js";
import { recordWith } from "./recording.js";

export class KeepDialog {
  /** @param {import("./voices.js").Voices} voices */
  constructor(voices) {
    this.voices = voices;
    this.consent = null;
    $("clip-keep").addEventListener("click", () => this.#open());
    $("keep-choose").addEventListener("click", () => $("keep-file").click());
    $("keep-file").addEventListener("change", () => this.#take($("keep-file").files[0]));
    this.recorder = recordWith(
      $("keep-record"),
      null,
      (file) => this.#take(file),
      (error) => this.#fail(error),
    );
    $("keep-cancel").addEventListener("click", () => $("keep").close());
    $("keep").addEventListener("close", () => this.recorder.stop());
    $("keep-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#keep();
    });
  }

  #open() {
    problems.clear();
    this.#take(null);
    $("keep-name").value = this.voices.chosenClip.name.replace(/\.\w+$/, "");
    $("keep").showModal();
    $("keep-name").select();
  }

  #take(file) {
    this.consent = file;
    $("keep-file").value = "";
    $("keep-consent").textContent = file ? file.name : "No recording yet.";
  }

  async #keep() {
    problems.clear();
    if (!this.consent) {
      this.#fail(new Error("Record or choose the speaker’s consent first."));
      return;
    }
    $("keep-do").disabled = true;
    try {
      const name = $("keep-name").value;
      const given = { name, language: $("keep-language").value, recording: this.consent };
      const consent = await postForm("/v1/audio/voice_consents", given);
      const { model, chosenClip } = this.voices;
      const made = { name, consent: consent.id, audio_sample: chosenClip.file, model };
      const voice = await postForm("/v1/audio/voices", made);
      $("keep").close();
      await this.voices.load(model, voice.id);
      $("voice").focus();
    } catch (error) {
      this.#fail(error);
    } finally {
      $("keep-do").disabled = false;
    }
  }

  #fail(error) {
    problems.show({ message: error.message, status: error.status, retryAfter: error.retryAfter }, "keep-problem");
  }
}
