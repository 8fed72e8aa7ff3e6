// One prompt for the tuned model and its base, next to each other.

import { chat } from "./api.js";
import { h, say } from "./dom.js";

export function tryPanel(tuned, base, signal) {
  const prompt = h("textarea", { id: "prompt", rows: 3, required: true, placeholder: "A prompt like those in your data" });
  const ask = h("button", { class: "main" }, "Ask both"), stop = h("button", { type: "button", disabled: true }, "Stop");
  const sides = [[tuned, "tuned"], [base, "base"]].map(([model, role]) => {
    const text = h("div", { class: "answer", tabindex: 0, role: "region", "aria-label": `Answer of the ${role} model` });
    return { model, text, element: h("div", { class: "card" }, h("h3", {}, role, " ", h("code", { class: "soft" }, model)), text) };
  });
  const form = h("form", { class: "try" }, h("label", { for: "prompt" }, "Prompt"), prompt, h("div", { class: "buttons" }, ask, stop),
    h("div", { class: "grid wide" }, sides.map((side) => side.element)));
  let open = null;

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    open = new AbortController();
    signal.addEventListener("abort", () => open.abort());
    ask.disabled = true;
    stop.disabled = false;
    await Promise.all(sides.map((side) => answer(side, prompt.value, open.signal)));
    ask.disabled = false;
    stop.disabled = true;
    say("Both have answered");
  });
  stop.addEventListener("click", () => open?.abort());
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return form;
}

async function answer({ model, text }, prompt, signal) {
  text.textContent = "";
  text.className = "answer waiting";
  try {
    await chat(model, prompt, (more) => {
      text.className = "answer";
      text.append(more);
    }, signal);
    text.className = text.textContent ? "answer" : "answer soft";
    if (!text.textContent) text.textContent = "(an empty answer)";
  } catch (error) {
    text.className = "answer";
    if (error.name !== "AbortError") text.replaceChildren(h("span", { class: "error" }, error.message));
  }
}
