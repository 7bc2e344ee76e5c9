// What was spoken since the page was opened.

import { $, duration } from "./dom.js";

export class Visit {
  /**
   * @param {{play: Function, use: Function, save: Function, forget: Function}} does what is done with an utterance
   */
  constructor(does) {
    this.does = does;
    this.entries = new Map(); // of utterances to their list items
    $("forget").addEventListener("click", () => {
      for (const utterance of [...this.entries.keys()]) this.#forget(utterance);
      $("text").focus();
    });
  }

  /** What was spoken last; null where nothing is left. */
  get last() {
    return [...this.entries.keys()].at(-1) ?? null;
  }

  /** Add an utterance, before the others. */
  add(utterance) {
    const item = $("spoken-template").content.cloneNode(true).firstElementChild;
    const find = (name) => item.querySelector(`.${name}`);
    const text = utterance.fields.input;
    find("text").textContent = text;
    const { model, seed } = utterance.fields;
    const facts = [...(model ? [model] : []), utterance.voice, duration(utterance.seconds), `seed ${seed}`];
    if (utterance.state === "cut") facts.push("cut short");
    find("facts").textContent = facts.join(" · ");
    const start = text.slice(0, 40);
    for (const [name, words, act] of [
      ["again", "Play", () => this.does.play(utterance)],
      ["use", "Use text, seed and manner of", () => this.does.use(utterance)],
      ["save", "Download", () => this.does.save(utterance)],
      ["delete", "Delete", () => this.#remove(utterance)],
    ]) {
      find(name).setAttribute("aria-label", `${words}: ${start}`);
      find(name).addEventListener("click", act);
    }
    this.entries.set(utterance, item);
    $("spoken").prepend(item);
    $("visit").hidden = false;
  }

  /** Remove one, and go on with the keyboard at the next. */
  #remove(utterance) {
    const item = this.entries.get(utterance);
    const next = item.nextElementSibling ?? item.previousElementSibling;
    this.#forget(utterance);
    (next?.querySelector(".delete") ?? $("text")).focus();
  }

  #forget(utterance) {
    this.entries.get(utterance).remove();
    this.entries.delete(utterance);
    this.does.forget(utterance);
    $("visit").hidden = !this.entries.size;
  }
}
