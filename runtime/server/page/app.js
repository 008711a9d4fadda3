// The page: settings, turns of the chat, and what keys do.

import { Lane } from "/page/lane.js";
import { ServerError, readModel, streamAnswer } from "/page/stream.js";

const EXAMPLES = [
  "Mia has 34 coins. Then 12 more arrive. Then 9 get lost. Then come 3 bags of 5. How many coins does Mia have now?",
  "Count down from 100 to 28 in steps of 4.",
  "Write a JSON list with the keys name, city for: Ben, Delhi; Cleo, Paris.",
];
const THEMES = ["auto", "light", "dark"];
const FIRST_CHOICES = ["self_speculation", "ar"];

const at = (id) => document.getElementById(id);
const page = { model: null, key: "", histories: [[], []], abort: null };

function storedTheme() {
  const stored = localStorage.getItem("nemodiff-theme");
  return THEMES.includes(stored) ? stored : "auto";
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  at("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem("nemodiff-theme", theme);
}

async function loadModel() {
  try {
    page.model = await readModel(page.key);
    at("key-form").hidden = true;
  } catch (error) {
    if (!(error instanceof ServerError) || error.status !== 401) {
      at("model").textContent = `No answer from the server: ${error.message}`;
      return;
    }
    at("key-form").hidden = false;
    at("key").focus();
    return;
  }
  at("model").textContent = `${page.model.id} · context of ${page.model.max_model_len} tokens`;
  document.querySelectorAll(".lane-choice").forEach(fillChoice);
}

function fillChoice(choice) {
  const side = Number(choice.dataset.side);
  const select = choice.querySelector("select");
  const modes = side ? [...page.model.modes, "none"] : page.model.modes;
  select.replaceChildren(...modes.map((mode) => new Option(mode, mode)));
  if (modes.includes(FIRST_CHOICES[side])) select.value = FIRST_CHOICES[side];
  const follow = () => {
    const input = choice.querySelector("input");
    const longest = select.value === "quadratic" ? page.model.max_quadratic_block_length : page.model.max_block_length;
    input.max = longest;
    input.value = Math.min(16, longest);
    input.disabled = ["ar", "auto", "none"].includes(select.value);
  };
  select.addEventListener("change", follow);
  follow();
}

/** What both sides are asked, a side without a mode left out. */
function readChoices() {
  return [...document.querySelectorAll(".lane-choice")]
    .map((choice) => {
      const block = choice.querySelector("input");
      return {
        side: Number(choice.dataset.side),
        mode: choice.querySelector("select").value,
        block: block.disabled ? null : Number(block.value),
      };
    })
    .filter((choice) => choice.mode !== "none");
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

async function runLane(lane, choice, question, signal) {
  if (!at("remember").checked) page.histories[choice.side] = [];
  const history = page.histories[choice.side];
  const messages = [...history, { role: "user", content: question }];
  const wishes = { messages, mode: choice.mode, max_tokens: Number(at("max-tokens").value) };
  if (choice.block) wishes.block_length = choice.block;
  try {
    for await (const chunk of streamAnswer(wishes, page.key, signal)) {
      lane.push(chunk);
      const delay = Number(at("pace").value);
      if (delay) await pause(delay, signal);
      if (signal.aborted) break;
    }
    if (!lane.isDone) lane.fail("stopped");
  } catch (error) {
    lane.fail(signal.aborted ? "stopped" : error.message);
  }
  history.push({ role: "user", content: question }, { role: "assistant", content: lane.text });
}

function verdict(lanes) {
  if (lanes.length < 2 || lanes.some((lane) => !lane.numRuns || lane.facts.classList.contains("error"))) return "";
  const [first, second] = lanes;
  const same = first.text === second.text ? "Same text" : "Different texts";
  const [fewer, more] = first.numRuns <= second.numRuns ? [first, second] : [second, first];
  const times = (more.numRuns / fewer.numRuns).toFixed(1);
  if (fewer.numRuns === more.numRuns) return `${same}, ${fewer.numRuns} forward passes each.`;
  return `${same}: ${fewer.title} took ${fewer.numRuns} forward passes, ${more.title} took ${more.numRuns}, ${times} times as many.`;
}

function addTurn(question, choices) {
  const turn = at("turn-template").content.firstElementChild.cloneNode(true);
  turn.querySelector(".question").textContent = question;
  const lanes = choices.map((choice) => {
    const element = at("lane-template").content.firstElementChild.cloneNode(true);
    turn.querySelector(".lanes").append(element);
    return new Lane(element, choice.block ? `${choice.mode} · ${choice.block}` : choice.mode, choice.block ?? 0);
  });
  at("turns").append(turn);
  at("start").hidden = true;
  turn.scrollIntoView({ block: "start", behavior: "smooth" });
  return { turn, lanes };
}

function setBusy(isBusy) {
  at("send").hidden = isBusy;
  at("stop").hidden = !isBusy;
  at("clear").disabled = isBusy;
}

async function send() {
  const question = at("prompt").value.trim();
  if (!question || page.abort || !page.model || !at("composer").reportValidity()) return;
  const choices = readChoices();
  const { turn, lanes } = addTurn(question, choices);
  at("prompt").value = "";
  page.abort = new AbortController();
  setBusy(true);
  at("announce").textContent = "Writing.";
  at("prompt").focus();
  const { signal } = page.abort;
  await Promise.all(lanes.map((lane, place) => runLane(lane, choices[place], question, signal)));
  page.abort = null;
  setBusy(false);
  const told = verdict(lanes);
  const note = turn.querySelector(".verdict");
  note.textContent = told;
  note.hidden = !told;
  at("announce").textContent = [...lanes.map((lane) => `${lane.title}: ${lane.text} ${lane.facts.textContent}.`), told].join(" ");
  at("prompt").focus();
}

function clear() {
  if (page.abort) return;
  page.histories = [[], []];
  at("turns").replaceChildren();
  at("start").hidden = false;
  at("prompt").focus();
}

function start() {
  setTheme(storedTheme());
  at("theme").addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length]);
  });
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    page.key = at("key").value;
    loadModel();
  });
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") page.abort?.abort();
  });
  at("stop").addEventListener("click", () => page.abort?.abort());
  at("clear").addEventListener("click", clear);
  at("examples").append(
    ...EXAMPLES.map((text) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => {
        at("prompt").value = text;
        send();
      });
      item.append(button);
      return item;
    }),
  );
  loadModel();
}

start();
