// Which of the server's models speaks. There is nothing to choose where it has one.

import { $ } from "./dom.js";

export class Models {
  /** @param {() => void} onChoice is called when somebody has chosen another model */
  constructor(onChoice) {
    this.known = [];
    $("model").addEventListener("change", onChoice);
  }

  /** Take the server's models, [{name, languages, fields}], the default first. */
  learn(known) {
    const { value } = $("model");
    this.known = known;
    $("model").replaceChildren(...known.map(({ name }) => new Option(name, name)));
    this.choose(value);
    $("model-field").hidden = known.length < 2;
  }

  /** The one that is chosen. */
  get chosen() {
    return this.known[$("model").selectedIndex];
  }

  /** Fields for a request. */
  get fields() {
    return this.known.length < 2 ? {} : { model: this.chosen.name };
  }

  /** Choose by name; one that the server does not have changes nothing. */
  choose(name) {
    if (this.known.some((model) => model.name === name)) $("model").value = name;
  }
}
