// What an empty conversation shows: what this model can do, and ways to begin.

import { byId, element } from "./dom.js";

const EXAMPLES = {
  text: ["Explain why the sky is blue in two sentences.", "Tell me a very short story about a cat.", "What can you do?"],
  image: ["What is in this picture?"],
};

// `abilities`: of "text", "image", "audio" (hears) and "speech".
export function welcome(abilities, onExample) {
  byId("abilities").textContent = told(abilities);
  const examples = Object.keys(EXAMPLES).filter((kind) => abilities.has(kind)).flatMap((kind) => EXAMPLES[kind]
    .map((words) => ({ kind, words })));
  byId("examples").replaceChildren(...examples.map(({ kind, words }) =>
    element("li", {}, element("button", { type: "button", textContent: words, onclick: () => onExample(words, kind) }))));
}

function told(abilities) {
  const ways = ["write"];
  if (abilities.has("image")) ways.push("show it a picture");
  if (abilities.has("audio")) ways.push("talk with it");
  const last = ways.pop();
  const list = ways.length ? `${ways.join(", ")} or ${last}` : last;
  return `You can ${list}. ${abilities.has("speech") ? "It answers in writing and aloud." : "It answers in writing."}`;
}
