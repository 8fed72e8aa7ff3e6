// A new job: a file, what the check finds in it, how to tune, what that is expected to take.

import { ask } from "./api.js";
import { h, poll, redraw, say, setText } from "./dom.js";
import { findings, statusOf } from "./findings.js";
import { count, hours, many, short, value } from "./format.js";
import { dropZone } from "./upload.js";

const CHECK_SECONDS = 1;
const FIELDS = [
  { name: "n_epochs", label: "Epochs", step: 1, min: 1 },
  { name: "batch_size", label: "Batch size", step: 1, min: 1 },
  { name: "learning_rate_multiplier", label: "Learning rate multiplier", step: "any", min: 0 },
  { name: "adapter_size", label: "Adapter size (rank)", step: 1, min: 1, optional: true },
  { name: "beta", label: "Beta", step: "any", min: 0, method: "dpo", optional: true },
];
const MEANINGS = {
  supervised: "learns your answers",
  dpo: "learns which of two answers is preferred",
  dss: "learns labels with rationales",
  distill: "learns from a larger model's probabilities",
  rlhf: "learns from rewards",
};

export async function newJob(main, signal) {
  main.append(h("h1", {}, "New job"), h("p", { class: "soft" }, "Loading …"));
  let offers, files;
  try {
    [offers, files] = await Promise.all([
      ask("GET", "/tuning/api/service", undefined, signal),
      ask("GET", "/v1/files?purpose=fine-tune&limit=50", undefined, signal),
    ]);
  } catch (error) {
    if (error.name !== "AbortError" && error.status !== 401) main.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    return;
  }
  main.replaceChildren(build(offers, files.data, signal));
}

function build(offers, files, signal) {
  const of = { training: null, validation: null, check: null, checking: null };
  const model = choice("model", offers.models.map((name) => [name, name]));
  const method = choice("method", offers.methods.map((name) => [name, name]));
  const meaning = h("p", { class: "soft small", id: "meaning" }, MEANINGS[method.value] ?? "");
  method.setAttribute("aria-describedby", "meaning");
  const earlier = choice("earlier", [["", "or an earlier upload …"], ...files.map((file) => [file.id, file.filename])]);
  const suffix = h("input", { id: "suffix", maxlength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", spellcheck: "false", autocomplete: "off", "aria-describedby": "suffix-note" });
  const seed = h("input", { id: "seed", type: "number", min: 0, step: 1, placeholder: "chosen for you" });
  const found = h("div", { class: "found", "aria-live": "polite" }), cost = h("div", { class: "cost" });
  const start = h("button", { class: "main", disabled: true }, "Start tuning"), problem = h("p", { class: "error", role: "alert" });
  const fields = [
    ...FIELDS.map((field) => hyperparameter(field, offers.auto[field.name], () => estimate())),
    teacher(offers.models, () => estimate()),
  ];
  const changed = () => {
    redraw(found, "", () => []);
    check();
  };
  const training = dropZone("training", "Choose a file", "or drop a JSONL file here", offers, (file) => {
    of.training = file;
    if (file) earlier.value = "";
    changed();
  }, signal);
  const validation = dropZone("validation", "Choose a validation file", "optional; otherwise a part of the training file is kept for it", offers, (file) => {
    of.validation = file;
    changed();
  }, signal);

  function check() {
    of.checking?.abort();
    of.check = null;
    start.disabled = of.training === null;
    setText(problem, "");
    redraw(cost, null, () => []);
    if (of.training === null) return;
    of.checking = new AbortController();
    signal.addEventListener("abort", () => of.checking.abort());
    examine(of, { file: of.training.id, validation_file: of.validation?.id, model: model.value, method: method.value }, found, (report) => {
      start.disabled = report !== null && statusOf(report) === "problem";
      estimate();
    });
  }

  async function estimate() {
    if (of.check === null || start.disabled) return;
    const asked = (of.asked = Symbol("asked"));
    try {
      const got = await ask("POST", `/tuning/api/checks/${of.check}/estimate`, { hyperparameters: given(fields, method.value) }, of.checking.signal);
      if (of.asked === asked) redraw(cost, got, expected);
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401 && of.asked === asked) {
        redraw(cost, error.message, (text) => h("p", { class: error.status === 409 ? "soft" : "error" }, text));
      }
    }
  }

  earlier.addEventListener("change", () => {
    training.clear();
    of.training = files.find((file) => file.id === earlier.value) ?? null;
    changed();
  });
  model.addEventListener("change", changed);
  method.addEventListener("change", () => {
    setText(meaning, MEANINGS[method.value] ?? "");
    for (const field of fields) field.hidden = field.of.method !== undefined && field.of.method !== method.value;
    changed();
  });
  for (const field of fields) field.hidden = field.of.method !== undefined && field.of.method !== method.value;

  const form = h("form", { class: "new", novalidate: false },
    h("h1", {}, "New job"),
    h("section", { class: "card" }, h("h2", {}, "Data"), training,
      files.length ? h("div", {}, h("label", { class: "hidden", for: "earlier" }, "Earlier upload"), earlier) : null,
      h("div", { class: "grid" }, labelled("Base model", model), h("div", {}, labelled("Method", method), meaning)),
      h("details", {}, h("summary", {}, "Validation file"), validation)),
    found,
    h("section", { class: "card" }, h("h2", {}, "Settings"),
      h("p", { class: "soft small" }, "What is “auto” is found by a sweep, and its winner gets a name only if it is better by more than chance."),
      h("div", { class: "grid" }, fields),
      h("div", { class: "grid" },
        h("div", {}, labelled("Suffix", suffix), h("p", { class: "soft small", id: "suffix-note" }, "names the tuned model; optional")),
        labelled("Seed", seed))),
    h("div", { class: "start" }, cost, problem, start));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    start.disabled = true;
    setText(problem, "");
    const type = method.value;
    const body = { model: model.value, training_file: of.training.id, method: { type, [type]: { hyperparameters: given(fields, type) } } };
    if (of.validation) body.validation_file = of.validation.id;
    if (suffix.value) body.suffix = suffix.value;
    if (seed.value) body.seed = Number(seed.value);
    try {
      const job = await ask("POST", "/v1/fine_tuning/jobs", body, signal);
      say("The job is created");
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      if (error.name !== "AbortError") setText(problem, error.message);
      start.disabled = false;
    }
  });
  return form;
}

async function examine(of, wanted, found, done) {
  const { signal } = of.checking;
  redraw(found, "checking", () => h("div", { class: "verdict note busy" }, "Checking the file …"));
  let id;
  try {
    id = (await ask("POST", "/tuning/api/checks", wanted, signal)).id;
  } catch (error) {
    fail(found, error);
    return;
  }
  poll(async () => {
    try {
      const check = await ask("GET", `/tuning/api/checks/${id}`, undefined, signal);
      if (check.state === "waiting" || check.state === "running") return null;
      if (check.state === "failed") {
        redraw(found, check.error, (text) => h("div", { class: "verdict warning" }, text));
        done(null);
      } else {
        of.check = id;
        redraw(found, check.report, (report) => h("section", {}, h("h2", {}, "Data check"), findings(report)));
        done(check.report);
      }
    } catch (error) {
      fail(found, error);
    }
    return "stop";
  }, CHECK_SECONDS, signal);
}

function fail(found, error) {
  if (error.name !== "AbortError" && error.status !== 401) {
    redraw(found, error.message, (text) => h("p", { class: "error", role: "alert" }, text));
  }
}

function choice(id, options) {
  return h("select", { id }, options.map(([of, name]) => h("option", { value: of }, name)));
}

const labelled = (name, input) => h("div", { class: "field" }, h("label", { for: input.id }, name), input);

// A number, or "auto"; some have a value of the service's own, where neither is asked for.
function hyperparameter(of, swept, changed) {
  const id = of.name.replaceAll("_", "-");
  const modes = of.optional ? [["default", "default"], ["auto", "auto"], ["value", "value"]] : [["auto", "auto"], ["value", "value"]];
  const mode = h("select", { id: `${id}-mode`, "aria-label": `${of.label}: auto or a value` }, modes.map(([key, name]) => h("option", { value: key }, name)));
  const input = h("input", { id, type: "number", step: of.step, min: of.min, disabled: true, required: true, "aria-label": of.label });
  const note = h("span", { class: "soft small" });
  const update = () => {
    input.disabled = mode.value !== "value";
    if (input.disabled) input.value = "";
    setText(note, mode.value === "auto" && swept ? `tries ${swept.map(value).join(", ")}` : "");
  };
  mode.addEventListener("change", () => {
    update();
    if (!input.disabled) input.focus();
    if (input.disabled || input.value) changed();
  });
  input.addEventListener("change", changed);
  update();
  const element = h("fieldset", { class: "field" }, h("legend", {}, of.label), h("div", { class: "pair" }, mode, input), note);
  element.of = of;
  element.read = () => (mode.value === "default" ? null : mode.value === "auto" ? "auto" : input.valueAsNumber);
  return element;
}

function teacher(models, changed) {
  const select = choice("teacher", models.map((name) => [name, name]));
  select.addEventListener("change", changed);
  const element = labelled("Teacher", select);
  element.of = { name: "teacher", method: "distill" };
  element.read = () => select.value;
  return element;
}

function given(fields, method) {
  const pairs = fields.filter((field) => field.of.method === undefined || field.of.method === method)
    .map((field) => [field.of.name, field.read()]);
  return Object.fromEntries(pairs.filter(([, read]) => read !== null && !Number.isNaN(read)));
}

function expected(estimate) {
  return h("p", {}, h("strong", {}, `About ${hours(estimate.device_hours)} of device time`),
    h("span", { class: "soft" }, ` · ${many(estimate.trials, "trial")} · ${count(estimate.records)} records × ${value(estimate.epochs)} epochs · ${short(estimate.tokens)} tokens · a guess from sizes alone`));
}
