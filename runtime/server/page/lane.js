// One answer while it is written: its tokens, one bar for each engine run, and tokens per forward.

const MASK = "▒";
const BAR_PX = 3;
const MAX_BAR_PX = 46;
// Named roles of runs that add nothing to the answer by themselves get a flat bar.
const FLAT_PX = 2;

// Special tokens by their name; none of them is text.
const SPECIAL = /^<[|/]?[a-z_]+[|]?>$/;
const END = "∎";

function span(text, kind) {
  const element = document.createElement("span");
  element.className = `token ${kind}`;
  element.textContent = text;
  return element;
}

export class Lane {
  constructor(element, title, blockLength) {
    this.element = element;
    this.text = "";
    this.numTokens = 0;
    this.numRuns = 0;
    this.isDone = false;
    this.answer = element.querySelector(".answer");
    this.runs = element.querySelector(".runs");
    this.ratio = element.querySelector("output");
    this.facts = element.querySelector(".facts");
    this.title = title;
    this.blockLength = blockLength;
    // Of the block that is being denoised: tokens by offset, and how many of its offsets are part of the answer.
    this.block = new Map();
    this.numEmitted = 1;
    this.tail = [];
    element.querySelector("h3").textContent = title;
    this.answer.setAttribute("aria-label", `Answer in mode ${title}`);
  }

  get tokensPerForward() {
    return this.numRuns ? (this.numTokens - 1) / this.numRuns : null;
  }

  /** Take in one chunk of the server's stream. */
  push(chunk) {
    const choice = chunk.choices[0];
    if (!choice) return;
    this.text += choice.delta.content ?? "";
    if (choice.trace) this.#show(choice.trace);
    if (choice.finish_reason) this.#finish(choice.nemodiff);
  }

  fail(message) {
    this.#clearTail();
    this.facts.textContent = message;
    this.facts.classList.add("error");
    this.isDone = true;
  }

  #show(trace) {
    this.#clearTail();
    if (trace.role === "denoise") this.#denoised(trace);
    else if (trace.role === "draft") this.#drafted(trace);
    else if (trace.drafted.length) this.#verified(trace);
    else {
      this.block.clear();
      this.numEmitted = 1;
      this.#emit(trace.emitted, () => "");
    }
    this.#count(trace);
    this.answer.scrollTop = this.answer.scrollHeight;
  }

  #denoised(trace) {
    for (const [offset, , text] of trace.committed) this.block.set(offset, text);
    this.#emit(trace.emitted, () => "committed");
    this.numEmitted += trace.emitted.length;
    for (let offset = this.numEmitted; offset < this.blockLength; offset += 1) {
      const text = this.block.get(offset);
      this.#append(text === undefined ? span(MASK, "mask") : span(SPECIAL.test(text) ? END : text, "committed"));
    }
  }

  #drafted(trace) {
    const guesses = trace.drafted.length ? trace.drafted : trace.committed.map(([, id, text]) => [id, text]);
    this.#appendGuesses(guesses, "drafted");
  }

  #verified(trace) {
    this.#emit(trace.emitted, (place) => (place < trace.accepted ? "accepted" : "own"));
    this.#appendGuesses(trace.drafted.slice(trace.accepted), "rejected");
  }

  /** Guesses up to the first that would end the answer: those behind it mean nothing. */
  #appendGuesses(guesses, kind) {
    for (const [, text] of guesses) {
      const isSpecial = SPECIAL.test(text);
      this.#append(span(isSpecial ? END : text, kind));
      if (isSpecial) return;
    }
  }

  #emit(tokens, kindOf) {
    tokens.forEach(([, text], place) => this.answer.append(span(text, kindOf(place))));
    this.numTokens += tokens.length;
  }

  /** Show what is not part of the answer, or not yet. */
  #append(element) {
    this.tail.push(element);
    this.answer.append(element);
  }

  #clearTail() {
    for (const element of this.tail) element.remove();
    this.tail = [];
  }

  #count(trace) {
    if (trace.role !== "prefill") {
      this.numRuns += 1;
      const bar = document.createElement("i");
      const height = trace.emitted.length * BAR_PX;
      bar.className = trace.emitted.length ? trace.role : "none";
      bar.style.height = `${height ? Math.min(height, MAX_BAR_PX) : FLAT_PX}px`;
      bar.title = `${trace.role}: ${trace.emitted.length} tokens`;
      this.runs.append(bar);
      this.runs.scrollLeft = this.runs.scrollWidth;
    }
    this.ratio.textContent = this.numRuns ? this.tokensPerForward.toFixed(2) : "–";
    this.facts.textContent = `${this.numTokens} tokens, ${this.numRuns} forward passes`;
  }

  #finish(details) {
    this.#clearTail();
    this.isDone = true;
    this.answer.classList.add("done");
    const parts = [`${this.numTokens} tokens`, `${details.forward_passes} forward passes`];
    if (details.mean_accepted !== null) parts.push(`${details.mean_accepted.toFixed(1)} a cycle`);
    parts.push(`${(details.prefill_ms + details.decode_ms).toFixed(0)} ms at the server`, `ended by ${details.finish_reason}`);
    this.facts.textContent = parts.join(" · ");
  }
}
