// The list of jobs, kept up to date in place.

import { address, ask, hasKey, Refused, watched } from "./api.js";
import { code, h, keyed, poll, say, setAttribute, setText } from "./dom.js";
import { age, hours, duration, isFinal, METHODS, moment, STATES, value } from "./format.js";

export function jobList(main, signal, seconds) {
  const rows = h("ul", { class: "jobs", "aria-label": "Jobs" });
  const place = h("div", { class: "list" });
  const more = h("button", { type: "button", hidden: true }, "Show older jobs");
  main.append(
    h("div", { class: "head" }, h("h1", {}, "Jobs"), h("a", { class: "button main", href: "#/new" }, "New job")), place);
  const older = [], states = new Map(), read = watched("/tuning/api/jobs");
  let newest = null;

  function draw() {
    const jobs = [...newest.jobs, ...older.filter((job) => !newest.jobs.some((one) => one.id === job.id))];
    announce(jobs, states);
    if (jobs.length === 0) {
      if (!place.querySelector(".empty")) place.replaceChildren(empty());
      return;
    }
    if (!rows.isConnected) place.replaceChildren(columns(), rows, more);
    keyed(rows, jobs, (job) => job.id, row);
    more.hidden = !(older.length ? older.hasMore : newest.has_more);
  }

  more.addEventListener("click", async () => {
    more.disabled = true;
    const last = (older.length ? older : newest.jobs).at(-1);
    const found = await ask("GET", `/tuning/api/jobs?after=${last.id}`, undefined, signal);
    older.push(...found.jobs);
    older.hasMore = found.has_more;
    more.disabled = false;
    draw();
  });

  poll(async () => {
    try {
      const found = await read(signal);
      if (found !== null) newest = found;
      if (newest !== null) draw();
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return "stop";
      if (!(error instanceof Refused)) console.error(error); // a fault of the page: the next reading tries again
      if (newest === null) place.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
  }, seconds, signal);
}

function announce(jobs, states) {
  for (const job of jobs) {
    const before = states.get(job.id);
    if (before !== undefined && before !== job.state) say(`${job.suffix ?? job.name}: ${STATES[job.state]}`);
    states.set(job.id, job.state);
  }
}

function columns() {
  const names = ["Job", "Model", "State", "Best", "Cost", "Created"];
  return h("div", { class: "columns", "aria-hidden": "true" }, names.map((name) => h("span", {}, name)));
}

function row() {
  const link = h("a", {}), under = h("span", { class: "soft small" });
  const model = h("span", {}), method = h("span", { class: "soft small" });
  const state = chip(), bar = h("progress", { max: 1 }), how = h("span", { class: "soft small" });
  const best = h("span", { class: "number" }), metric = h("span", { class: "soft small" });
  const cost = h("span", { class: "number" }), time = h("time", {});
  const item = h("li", {},
    h("div", { class: "what" }, link, under), h("div", {}, model, method),
    h("div", { class: "state" }, state, bar, how), h("div", { "data-label": "best" }, best, metric),
    h("div", { "data-label": "cost" }, cost), h("div", { class: "soft" }, time));
  item.update = (job) => {
    setAttribute(link, "href", `#/jobs/${job.id}`);
    setText(link, job.suffix ?? job.name);
    setText(under, job.file);
    setText(model, job.model);
    setText(method, METHODS[job.method] ?? job.method);
    state.update(job);
    bar.hidden = job.state !== "running" || job.progress === null;
    setAttribute(bar, "aria-label", `${link.textContent}: progress`);
    if (!bar.hidden) bar.value = job.progress;
    setText(how, hint(job));
    setText(best, job.best === null ? "–" : value(job.best.value));
    setText(metric, job.best?.metric ?? "");
    setText(cost, hours(job.device_hours));
    setText(time, age(job.created));
    setAttribute(time, "datetime", new Date(1000 * job.created).toISOString());
    setAttribute(time, "title", moment(job.created));
  };
  return item;
}

export function chip() {
  const element = h("span", { class: "chip" });
  element.update = (job) => {
    setText(element, STATES[job.state]);
    setAttribute(element, "data-state", job.state);
  };
  return element;
}

// What comes next, or why it ended.
export function hint(job) {
  if (job.wanted === "cancel" && !isFinal(job.state)) return "cancelling …";
  if (job.wanted === "pause" && job.state !== "paused" && !isFinal(job.state)) return "pausing …";
  if (job.state === "queued" && job.place !== null) return job.place === 1 ? "next in the queue" : `place ${job.place} in the queue`;
  if (job.state === "running" && job.seconds_left !== null) return `about ${duration(job.seconds_left)} left`;
  if (job.state === "running" && job.estimated_device_hours !== null) return `estimated ${hours(job.estimated_device_hours)}`;
  if (job.state === "failed") return (job.error?.message ?? "").split("\n")[0].replace(/:$/, "");
  if (job.state === "succeeded") return job.fine_tuned_model ?? "not better than before";
  return job.note ?? "";
}

function empty() {
  const base = address();
  const key = hasKey() ? " -H \"authorization: Bearer $KEY\"" : "";
  const curl = [
    `curl ${base}/files${key} -F purpose=fine-tune -F file=@train.jsonl`,
    `curl ${base}/fine_tuning/jobs${key} -H 'content-type: application/json' \\`,
    `  -d '{"model": "MODEL", "training_file": "file-…"}'`,
  ].join("\n");
  const python = [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${base}", api_key="${hasKey() ? "KEY" : "none"}")`,
    'file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")',
    'job = client.fine_tuning.jobs.create(model="MODEL", training_file=file.id)',
  ].join("\n");
  return h("div", { class: "empty" },
    h("h2", {}, "No jobs yet"),
    h("p", {}, "A job tunes a model on your examples, tries several settings, and keeps the result if it is better by more than chance."),
    h("p", {}, h("a", { class: "button main", href: "#/new" }, "Start with a JSONL file")),
    h("p", { class: "soft" }, "Or from your code, with the client that you have:"),
    h("div", { class: "grid wide" },
      h("div", { class: "card" }, h("h3", {}, "Python"), code(python, "Example in Python")),
      h("div", { class: "card" }, h("h3", {}, "Shell"), code(curl, "Example for the shell"))));
}
