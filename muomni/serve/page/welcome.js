// What an empty conversation shows: what this model can do, and ways to begin.

import { byId, element } from "./dom.js";

// What it takes, and the words.
const EXAMPLES = [
  ["text", "Explain why the sky is blue in two sentences."],
  ["text", "Tell me a very short story about a cat."],
  ["text", "What can you do?"],
  ["image", "What is in this picture?"],
];

// `abilities`: of "text", "image", "audio" (hears) and "speech".
export function welcome(abilities, onExample) {
  byId("abilities").textContent = told(abilities);
  const examples = EXAMPLES.filter(([kind]) => abilities.has(kind));
  byId("examples").replaceChildren(...examples.map(([kind, words]) => {
    const onclick = () => onExample(words, kind);
    return element("li", {}, element("button", { type: "button", textContent: words, onclick }));
  }));
}

function told(abilities) {
  const ways = ["write"];
  if (abilities.has("image")) ways.push("show it a picture");
  if (abilities.has("audio")) ways.push("talk with it");
  const last = ways.pop();
  const list = ways.length ? `${ways.join(", ")} or ${last}` : last;
  return `You can ${list}. ${abilities.has("speech") ? "It answers in writing and aloud." : "It answers in writing."}`;
}
