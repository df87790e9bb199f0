// What was said, as turns: a message of the user and its reply. No document in here.

export class Reply {
  text = "";
  sound = []; // pieces of 16 bit samples
  heard = null; // the part of the text that was heard, where the reply was interrupted
  figures = null;
  error = null;
}

export class Turn {
  reply = new Reply();

  // `media`: {kind: "image" | "audio", part, url, name, heard} each; `part` is the API's, `heard` what was said in a
  // sound, where it was written down.
  constructor(text, media = []) {
    this.text = text;
    this.media = media;
  }

  get message() {
    if (!this.media.length) return { role: "user", content: this.text };
    const text = this.text ? [{ type: "text", text: this.text }] : [];
    return { role: "user", content: [...this.media.map((each) => each.part), ...text] };
  }

  get answer() {
    return { role: "assistant", content: this.reply.heard ?? this.reply.text };
  }
}

export class Conversation {
  turns = [];

  get last() {
    return this.turns.at(-1);
  }

  // The API's messages; `open` is the turn that is to be answered.
  messages(system = "", open = null) {
    const said = this.turns.filter((turn) => turn !== open && turn.answer.content);
    const messages = said.flatMap((turn) => [turn.message, turn.answer]);
    if (open) messages.push(open.message);
    return system ? [{ role: "system", content: system }, ...messages] : messages;
  }

  asJson(model, system) {
    return JSON.stringify({ model, messages: this.messages(system) }, null, 1);
  }

  asMarkdown(model, system) {
    const lines = [`# Conversation with ${model}`];
    if (system) lines.push(`*Instructions: ${system}*`);
    for (const turn of this.turns) {
      const media = turn.media.map(described);
      lines.push("**You**", ...media, ...(turn.text ? [turn.text] : []));
      if (turn.answer.content) lines.push(`**${model}**`, turn.answer.content);
    }
    return `${lines.join("\n\n")}\n`;
  }
}

function described({ kind, name, heard }) {
  return `*[${kind === "image" ? "picture" : "sound"}: ${name}]*${heard ? ` “${heard}”` : ""}`;
}
