// The settings: kept in the browser, but for the key, which ends with the tab.

import { byId, element } from "./dom.js";

const STORED = "muomni.settings";
const KEY = "muomni.key";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class Settings {
  #dialog = byId("settings");
  #form = this.#dialog.querySelector("form");
  #keyDialog = byId("key-dialog");
  #fields = this.#form.elements;

  // `onChange()` is called when the dialog closes, `onKey()` when another key was entered.
  constructor(onChange, onKey) {
    this.#restore();
    byId("settings-open").onclick = () => this.#dialog.showModal();
    byId("settings-reset").onclick = () => { this.#form.reset(); this.#fields.key.value = this.key; };
    this.#dialog.onclose = () => {
      if (!this.#form.checkValidity()) this.#restore();
      this.#save();
      this.#setKey(this.#fields.key.value, onKey);
      onChange();
    };
    this.#keyDialog.onclose = () => {
      const field = this.#keyDialog.querySelector("input");
      if (this.#keyDialog.returnValue === "use") this.#setKey(field.value, onKey);
      this.#keyDialog.returnValue = field.value = "";
    };
    byId("key-cancel").onclick = () => this.#keyDialog.close();
    for (const dialog of [this.#dialog, this.#keyDialog]) {
      dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); }; // beside it
    }
  }

  get system() { return this.#fields.system.value.trim(); }
  get voice() { return this.#fields.voice.value; }
  get speaks() { return this.#fields.speaks.checked; }
  get captions() { return this.#fields.captions.checked; }
  get interruptible() { return this.#fields.interruptible.checked; }
  get key() { return sessionStorage.getItem(KEY) ?? ""; }

  set speaks(speaks) {
    this.#fields.speaks.checked = speaks;
    this.#save();
  }

  // The keys of a request.
  get sampling() {
    const set = NUMBERS.filter((name) => this.#fields[name].value !== "");
    return Object.fromEntries(set.map((name) => [name, Number(this.#fields[name].value)]));
  }

  askForKey() {
    if (!this.#keyDialog.open) this.#keyDialog.showModal();
  }

  setVoices(voices) {
    const chosen = this.#stored().voice;
    const option = (name) => element("option", { value: name, textContent: name, selected: name === chosen });
    this.#fields.voice.replaceChildren(...voices.map(option));
  }

  #setKey(key, onKey) {
    if (key === this.key) return;
    sessionStorage.setItem(KEY, key);
    this.#fields.key.value = key;
    onKey();
  }

  #stored() {
    try {
      return JSON.parse(localStorage.getItem(STORED)) ?? {};
    } catch {
      return {}; // written by something else
    }
  }

  #save() {
    const kept = [...this.#fields].filter((field) => field.name && field.name !== "key");
    const value = (field) => (field.type === "checkbox" ? field.checked : field.value);
    localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(kept.map((field) => [field.name, value(field)]))));
  }

  #restore() {
    for (const [name, value] of Object.entries(this.#stored())) {
      const field = this.#fields[name];
      if (field?.type === "checkbox") field.checked = value === true;
      else if (field) field.value = value;
    }
    this.#fields.key.value = this.key;
  }
}
