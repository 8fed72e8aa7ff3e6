// One job: what it is, how far it is, what it came to.

import { ask, Refused, send, watched } from "./api.js";
import { chart } from "./chart.js";
import { code, confirmed, h, keyed, poll, redraw, say, setText } from "./dom.js";
import { findings } from "./findings.js";
import { count, hours, isFinal, many, METHODS, moment, point, short, shortTrial, STATES, value } from "./format.js";
import { chip, hint } from "./jobs.js";
import { eventItem, leaderboard, metrics, soFar, timeline, verdict } from "./results.js";
import { tryPanel } from "./try.js";

const FILES = {
  "run-report.html": "Report of the run",
  "report.html": "Data report",
  "evaluation-eval.md": "Evaluation report",
  "leaderboard.csv": "Leaderboard (CSV)",
};
const SHOWN_EVENTS = 100;

export function detail(main, id, signal, seconds) {
  const shown = { job: null, picked: null, metric: null };
  const parts = skeleton(shown, () => draw(), signal);
  const read = watched(`/tuning/api/jobs/${id}`);
  main.append(h("p", { class: "soft" }, "Loading …"));

  function draw() {
    if (!parts.page.isConnected) main.replaceChildren(parts.page);
    drawHead(parts, shown.job);
    drawCurves(parts, shown);
    drawRest(parts, shown.job, signal);
  }

  const again = poll(async () => {
    try {
      const found = await read(signal);
      if (found === null) return shown.job && isFinal(shown.job.state) ? "stop" : null;
      const before = shown.job?.state;
      shown.job = found;
      draw();
      if (before !== undefined && before !== found.state) say(`The job is now ${STATES[found.state]}`);
      await drawEvents(parts, id, signal);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return "stop";
      if (!(error instanceof Refused)) console.error(error); // a fault of the page: the next reading tries again
      if (shown.job === null) {
        const text = error.status === 404 ? "There is no such job, or it belongs to another key." : error.message;
        main.replaceChildren(h("h1", {}, "Job"), h("p", { class: "error", role: "alert" }, text), h("p", {}, h("a", { href: "#/" }, "All jobs")));
        return "stop";
      }
    }
    return null;
  }, seconds, signal);
  parts.onAction = (action) => act(parts, shown.job, action, signal).then(again);
}

async function act(parts, job, action, signal) {
  const questions = {
    cancel: ["Cancel this job?", "Its training ends for good; what it has used stays counted.", "Cancel the job"],
    pause: ["Pause this job?", "It stops at its last checkpoint and gives its devices to others, until you resume it.", "Pause the job"],
  };
  setText(parts.problem, "");
  if (questions[action] && !(await confirmed(...questions[action]))) return;
  try {
    await ask("POST", `/v1/fine_tuning/jobs/${job.id}/${action}`, undefined, signal);
  } catch (error) {
    setText(parts.problem, error.message);
  }
}

function skeleton(shown, onPick, signal) {
  const parts = {
    name: h("h1", {}), state: chip(), how: h("span", { class: "soft" }), bar: h("progress", { max: 1, "aria-label": "Progress" }),
    buttons: h("div", { class: "buttons" }), problem: h("p", { class: "error", role: "alert" }),
    times: h("div", { class: "times" }), verdict: h("div", {}), facts: h("div", {}), legend: h("div", { class: "legend", role: "group", "aria-label": "Trials" }),
    metric: h("select", { id: "metric" }), boardTitle: h("h2", {}, "Leaderboard"), result: h("div", {}), command: h("div", {}),
    events: h("ol", { class: "events", tabindex: 0, "aria-label": "Events" }), files: h("div", {}), data: h("div", {}), trial: h("div", {}),
  };
  const pick = (id) => {
    shown.picked = shown.picked === id ? null : id;
    onPick();
  };
  parts.pick = pick;
  parts.evalChart = chart("Evaluation", pick);
  parts.trainChart = chart("train/loss", pick);
  parts.board = leaderboard(pick);
  parts.metric.addEventListener("change", () => {
    shown.metric = parts.metric.value;
    onPick();
  });
  parts.evalChart.watch(signal);
  parts.trainChart.watch(signal);
  parts.curves = h("section", {}, h("div", { class: "head" }, h("h2", {}, "Curves"), h("div", { class: "pick" }, h("label", { class: "small", for: "metric" }, "Metric"), parts.metric)),
    h("div", { class: "grid wide" }, parts.evalChart, parts.trainChart), parts.legend, parts.boardTitle, parts.board);
  parts.page = h("article", {},
    h("p", { class: "small" }, h("a", { href: "#/" }, "← All jobs")),
    h("div", { class: "head" }, parts.name, parts.state, parts.buttons),
    parts.problem, h("div", { class: "progress" }, parts.bar, parts.how), parts.times, parts.verdict, parts.facts, parts.curves,
    parts.result, parts.trial, parts.files, parts.data,
    h("section", {}, h("h2", {}, "Events"), parts.events), parts.command);
  return parts;
}

function drawHead(parts, job) {
  setText(parts.name, job.suffix ?? job.name);
  document.title = `${job.suffix ?? job.name} · Tuning`;
  parts.state.update(job);
  setText(parts.how, ["failed", "succeeded"].includes(job.state) ? "" : hint(job));
  parts.bar.hidden = job.state !== "running";
  if (job.progress === null) parts.bar.removeAttribute("value");
  else parts.bar.value = job.progress;
  const actions = isFinal(job.state) || job.wanted === "cancel" ? []
    : [job.state === "paused" ? "resume" : job.wanted === "pause" ? null : "pause", "cancel"].filter(Boolean);
  keyed(parts.buttons, actions, (action) => action, (action) => {
    const button = h("button", { type: "button", class: action === "cancel" ? "danger" : "" }, action[0].toUpperCase() + action.slice(1));
    button.addEventListener("click", () => parts.onAction(action));
    button.update = () => {};
    return button;
  });
  redraw(parts.times, { changes: job.changes, ended: isFinal(job.state), minute: Math.floor(Date.now() / 60000) }, timeline);
  redraw(parts.verdict, { error: job.error, result: job.result, note: isFinal(job.state) ? null : job.note }, verdict);
  redraw(parts.facts, factsOf(job), (facts) => h("dl", { class: "facts" }, facts.map(([name, of]) => h("div", {}, h("dt", {}, name), h("dd", {}, name === "id" ? h("code", { class: "id" }, of) : of)))));
}

function factsOf(job) {
  const given = Object.entries(job.hyperparameters);
  const spent = job.estimate && !isFinal(job.state) ? `${hours(job.device_hours)} of about ${hours(job.estimate.device_hours)}` : hours(job.device_hours);
  return [
    ["model", job.model],
    ["method", METHODS[job.method] ?? job.method],
    ["training file", job.training_file.filename],
    job.validation_file ? ["validation file", job.validation_file.filename] : null,
    ["hyperparameters", given.length ? given.map(([name, of]) => `${name} ${of}`).join(", ") : "all auto"],
    job.estimate ? ["data", `${many(job.estimate.records, "record")} × ${value(job.estimate.epochs)} epochs, ${many(job.estimate.trials, "trial")}`] : null,
    job.estimate ? ["tokens", `about ${short(job.estimate.tokens)}`] : null,
    ["device time", spent],
    ["seed", String(job.seed)],
    ["created", moment(job.created)],
    ...Object.entries(job.metadata),
    ["id", job.id],
  ].filter(Boolean);
}

function drawCurves(parts, shown) {
  const { job } = shown;
  parts.curves.hidden = job.trials.length === 0;
  if (parts.curves.hidden) return;
  const names = [...new Set(job.trials.flatMap((trial) => Object.keys(trial.points)))].filter((name) => name.startsWith("eval/")).sort();
  redraw(parts.metric, names, () => names.map((name) => h("option", { value: name }, name)));
  const metric = names.includes(shown.metric) ? shown.metric : job.metric;
  if (metric && parts.metric.value !== metric) parts.metric.value = metric;
  const ranked = soFar(job.trials, metric, job.falling);
  const best = shown.picked ?? (metric === job.metric ? job.winner : null) ?? ranked[0]?.trial ?? null;
  parts.evalChart.update(job.trials, metric, best);
  parts.trainChart.update(job.trials, "train/loss", best);
  drawLegend(parts, job, ranked, best);
  const isOver = job.leaderboard.length > 0;
  setText(parts.boardTitle, isOver ? "Leaderboard" : "Leaderboard so far");
  parts.board.hidden = parts.boardTitle.hidden = !isOver && ranked.length < 2;
  parts.board.update(isOver ? job.leaderboard : ranked, metric, best);
}

function drawLegend(parts, job, ranked, best) {
  const order = new Map(ranked.map((row, place) => [row.trial, place]));
  const trials = [...job.trials].sort((a, b) => (order.get(a.id) ?? 99) - (order.get(b.id) ?? 99));
  parts.legend.hidden = trials.length < 2;
  keyed(parts.legend, trials, (trial) => trial.id, (trial) => {
    const name = point(trial.values) || shortTrial(trial.id);
    const button = h("button", { type: "button", class: "trial", "aria-pressed": "false" }, h("i", { "aria-hidden": "true" }), name);
    button.addEventListener("click", () => parts.pick(trial.id));
    button.update = () => button.setAttribute("aria-pressed", String(trial.id === parts.best));
    return button;
  });
  parts.best = best;
  for (const button of parts.legend.children) button.update();
}

function drawRest(parts, job, signal) {
  redraw(parts.result, job.result, (result) => (result === null ? [] : h("section", {}, h("h2", {}, "Result"), metrics(result))));
  redraw(parts.trial, job.result && [job.result.version, job.base], (names) =>
    names === null ? [] : h("section", {}, h("h2", {}, "Try it"), tryPanel(...names, signal)));
  redraw(parts.command, job.command, (text) => (text === null ? [] : h("section", {}, h("h2", {}, "Command"),
    h("p", { class: "soft" }, "What runs on the cluster; anybody who can reach the storage can run it by hand."), code(text, "Command"))));
  const csv = job.result_files.slice(0, 1); // a sweep's second one is its leaderboard, which is a file of the run
  const files = [...job.files.filter((name) => FILES[name]), ...csv];
  redraw(parts.files, files, () => (files.length === 0 ? [] : h("section", {}, h("h2", {}, "Files"), h("ul", { class: "files" },
    job.files.filter((name) => FILES[name]).map((name) => h("li", {}, fileButton(FILES[name], `/tuning/api/jobs/${job.id}/files/${name}`, name))),
    csv.map((file) => h("li", {}, fileButton("Result metrics (CSV)", `/v1/files/${file}/content`, `${file}.csv`)))))));
  redraw(parts.data, job.files.includes("report.json"), (has) => (has ? dataCheck(job, signal) : []));
}

function fileButton(name, path, filename) {
  const button = h("button", { type: "button" }, name);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const content = await (await send("GET", path)).blob();
      const link = h("a", { href: URL.createObjectURL(content), download: filename });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    } catch (error) {
      say(error.message);
      setText(button, `${name}: ${error.message}`);
    }
    button.disabled = false;
  });
  return button;
}

function dataCheck(job, signal) {
  const place = h("div", {}, h("p", { class: "soft" }, "Loading …"));
  const details = h("details", { class: "section" }, h("summary", {}, h("h2", {}, "Data check")), place);
  details.addEventListener("toggle", async () => {
    try {
      place.replaceChildren(...findings(await ask("GET", `/tuning/api/jobs/${job.id}/files/report.json`, undefined, signal)).flat(Infinity).filter(Boolean));
    } catch (error) {
      place.replaceChildren(h("p", { class: "error" }, error.message));
    }
  }, { once: true });
  return details;
}

async function drawEvents(parts, id, signal) {
  const found = await ask("GET", `/v1/fine_tuning/jobs/${id}/events?limit=${SHOWN_EVENTS}`, undefined, signal);
  keyed(parts.events, found.data.filter((event) => event.type !== "metrics"), (event) => event.id, eventItem);
}
