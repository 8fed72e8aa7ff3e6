// The page's frame: which view is shown, the key, the usage in the header.

import { forgetKey, hasKey, setKey, watched } from "./api.js";
import { detail } from "./detail.js";
import { h, poll, redraw, say, setAttribute } from "./dom.js";
import { newJob } from "./form.js";
import { hours } from "./format.js";
import { jobList } from "./jobs.js";

const main = document.getElementById("main");
const POLL_SECONDS = 2;
const USAGE_SECONDS = 10;
let view = null;

function route() {
  const [, name, id] = location.hash.replace(/^#/, "").split("/");
  if (name === "jobs" && /^ftjob-[0-9a-f]+$/.test(id ?? "")) return ["jobs", (at, signal) => detail(at, id, signal)];
  if (name === "new") return ["new", newJob];
  return ["jobs", jobList];
}

function show() {
  view?.abort();
  view = new AbortController();
  const [place, make] = route();
  setAttribute(document.getElementById("nav-jobs"), "aria-current", place === "jobs" ? "page" : null);
  setAttribute(document.getElementById("nav-new"), "aria-current", place === "new" ? "page" : null);
  document.getElementById("forget").hidden = !hasKey();
  document.title = "Tuning";
  main.replaceChildren();
  make(main, view.signal, POLL_SECONDS);
  poll(usage(view.signal), USAGE_SECONDS, view.signal);
}

function usage(signal) {
  const read = watched("/tuning/api/service"), place = document.getElementById("usage");
  return async () => {
    try {
      const found = await read(signal);
      if (found !== null) redraw(place, found.usage, meter);
    } catch (error) {
      if (error.name !== "AbortError") redraw(place, null, () => []);
      return "stop";
    }
  };
}

function meter(found) {
  const limit = found.device_hours_limit;
  const part = limit === null ? 0 : Math.min(1, found.device_hours / limit);
  const text = limit === null ? `${hours(found.device_hours)} used` : `${hours(found.device_hours)} of ${hours(limit)} used`;
  const bar = limit === null ? null : h("progress", {
    max: 1, value: part, "aria-label": "Device hours used", class: part >= 1 ? "full" : part > 0.8 ? "near" : "",
  });
  return [
    h("span", { title: "Hours of GPUs, or of a job where there is no GPU" }, text, bar),
    h("span", {}, `${found.running} running · ${found.waiting} waiting`),
  ];
}

function askForKey(problem) {
  view?.abort();
  view = new AbortController();
  const input = h("input", {
    id: "key", type: "password", autocomplete: "off", required: true, spellcheck: "false", "aria-describedby": "key-note",
  });
  const form = h("form", { class: "card key" },
    h("h1", {}, "API key"),
    h("p", { class: "soft", id: "key-note" }, "This service needs a key. It is kept in this tab only, until you close it."),
    hasKey() ? h("p", { class: "error", role: "alert" }, problem.status === 401 ? "That key is not valid here." : problem.message) : null,
    h("label", { for: "key" }, "Key"), input,
    h("button", { class: "main" }, "Continue"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    show();
  });
  forgetKeyButton(false);
  main.replaceChildren(form);
  input.focus();
}

function forgetKeyButton(isShown) {
  document.getElementById("forget").hidden = !isShown;
}

addEventListener("hashchange", () => {
  show();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
addEventListener("key-needed", (event) => askForKey(event.detail));
addEventListener("connection", (event) => {
  const place = document.getElementById("offline");
  if (place.hidden === event.detail) return;
  place.hidden = event.detail;
  place.textContent = event.detail ? "" : "The service can't be reached; trying again …";
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("forget").addEventListener("click", () => {
  forgetKey();
  say("The key is forgotten");
  show();
});
show();
