// The controls of how to speak. One that is not touched is not sent: then the model's own value holds.

const SHOWN = [
  { name: "speed", label: "Speed", slide: [0.5, 2], step: 0.05 },
  { name: "exaggeration", label: "Exaggeration", slide: [0, 2], step: 0.05, note: "0.5 is neutral, more is livelier" },
  { name: "cfg_weight", label: "CFG weight", slide: [0, 2], step: 0.05, note: "how closely it keeps to the text" },
  { name: "temperature", label: "Temperature", slide: [0, 2], step: 0.05, note: "how freely it draws" },
];
const MORE = [
  { name: "min_p", label: "Min-p", slide: [0, 1], step: 0.01 },
  { name: "top_p", label: "Top-p", slide: [0.05, 1], step: 0.05 },
  { name: "top_k", label: "Top-k", slide: [0, 2000], step: 50, note: "0 is none" },
  { name: "repetition_penalty", label: "Repetition penalty", slide: [0.5, 3], step: 0.05 },
  { name: "diffusion_steps", label: "Diffusion steps", slide: [1, 30], step: 1, note: "more is finer and slower" },
  { name: "max_tokens", label: "Most speech tokens of a piece", slide: [25, 1000], step: 25, note: "25 are a second" },
];

export class Fields {
  /**
   * @param {{shown: HTMLElement, more: HTMLElement, template: HTMLTemplateElement, reset: HTMLButtonElement}} places
   */
  constructor({ shown, more, template, reset }) {
    this.fields = [...SHOWN.map((field) => [field, shown]), ...MORE.map((field) => [field, more])].map(
      ([field, place]) => new Field(field, place, template, () => this.#changed()),
    );
    this.reset = reset;
    reset.addEventListener("click", () => {
      this.set({});
      this.fields[0].slide.focus();
    });
  }

  /** What was chosen, by name. */
  get values() {
    return Object.fromEntries(this.fields.filter((field) => field.counts).map((field) => [field.name, field.value]));
  }

  /** Choose these values, and the model's own for all others. */
  set(values) {
    for (const field of this.fields) field.choose(values[field.name] ?? null);
    this.#changed();
  }

  /** Take the ranges that the server allows and the model's own values, {name: {low, high, default}}. */
  learn(facts) {
    for (const field of this.fields) field.learn(facts[field.name]);
    this.#changed();
  }

  #changed() {
    this.reset.hidden = !this.fields.some((field) => field.counts);
  }
}

class Field {
  constructor({ name, label, slide, step, note }, place, template, changed) {
    const row = template.content.cloneNode(true).firstElementChild;
    const [words, number, range, remark, problem] = row.children;
    Object.assign(this, { name, row, number, slide: range, own: null, isChosen: false });
    number.id = name;
    words.htmlFor = name;
    words.textContent = label;
    number.step = "any";
    [range.min, range.max] = slide;
    range.step = step;
    range.id = `${name}-slide`;
    range.setAttribute("aria-label", label);
    remark.textContent = note ?? "";
    remark.id = `${name}-note`;
    remark.hidden = !note;
    problem.id = `${name}-problem`;
    number.setAttribute("aria-describedby", `${remark.id} ${problem.id}`);
    range.addEventListener("input", () => this.choose(range.valueAsNumber, changed));
    number.addEventListener("input", () => this.choose(number.value === "" ? null : number.valueAsNumber, changed));
    number.addEventListener("blur", () => this.#show());
    place.append(row);
  }

  get value() {
    return this.chosen;
  }

  /** Whether it is to be sent: what another model lacks stays chosen until that one is left. */
  get counts() {
    return this.isChosen && !this.row.hidden;
  }

  choose(value, changed = () => {}) {
    this.chosen = value;
    this.isChosen = value !== null;
    this.row.classList.toggle("chosen", this.isChosen);
    this.#show();
    changed();
  }

  learn(facts) {
    this.row.hidden = facts === undefined;
    if (facts === undefined) return;
    this.own = facts.default;
    this.number.min = facts.low;
    this.number.max = facts.high;
    this.#show();
  }

  #show() {
    const value = this.isChosen ? this.chosen : this.own;
    this.number.placeholder = this.own ?? "auto";
    if (value !== null) this.slide.value = value;
    if (document.activeElement !== this.number) this.number.value = value ?? "";
  }
}
