// What a job came to: its way through the states, its verdict, its leaderboard, its events.

import { h, setAttribute } from "./dom.js";
import { age, clock, count, duration, lastPart, moment, shortTrial, STATES, value } from "./format.js";

export function timeline({ changes, ended }) {
  return h("ol", { class: "timeline", "aria-label": "States" }, changes.map(({ state, at }, place) => {
    const next = changes[place + 1]?.at;
    const took = next ? duration(next - at) : ended ? "" : `since ${age(at).replace(" ago", "")}`;
    return h("li", { "data-state": state, title: moment(at) },
      h("span", { class: "name" }, STATES[state] ?? state), h("span", { class: "soft small" }, took ? ` ${took}` : ""));
  }));
}

export function verdict(job) {
  if (job.error !== null) {
    const [first, ...rest] = job.error.message.split("\n");
    return h("div", { class: "verdict problem" }, first,
      rest.length ? h("ul", { class: "lines" }, rest.filter((line) => line.trim()).map((line) => h("li", {}, line.trim()))) : null);
  }
  if (job.result !== null) {
    const { is_named: isNamed, text, version } = job.result;
    return h("div", { class: `verdict ${isNamed ? "sound" : "warning"}` }, text,
      h("p", { class: "small soft" }, isNamed ? "Ask for it by its name: " : "No model was named. What was trained can still be asked: ",
        h("code", {}, version)));
  }
  return job.note === null ? [] : h("div", { class: "verdict note" }, job.note);
}

// A table whose columns sort; the order that the user chose is kept when rows change.
export function leaderboard(onPick) {
  const head = h("tr", {}), body = h("tbody", {});
  const caption = h("caption", { class: "hidden" }, "Leaderboard");
  const table = h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Leaderboard" },
    h("table", { class: "board" }, caption, h("thead", {}, head), body));
  const of = { rows: [], columns: [], sorted: null, isDown: false, picked: null };

  function draw() {
    head.replaceChildren(h("th", { scope: "col" }, "place"), ...of.columns.map((column) => {
      const isSorted = of.sorted === column.key;
      const button = h("button", { type: "button", class: "sort", "data-sort": column.key }, column.name,
        h("span", { "aria-hidden": "true" }, isSorted ? (of.isDown ? " ↓" : " ↑") : ""));
      button.addEventListener("click", () => {
        of.isDown = isSorted ? !of.isDown : false;
        of.sorted = column.key;
        draw();
        head.querySelector(`[data-sort="${CSS.escape(column.key)}"]`).focus();
      });
      return h("th", { scope: "col", "aria-sort": isSorted ? (of.isDown ? "descending" : "ascending") : null }, button);
    }));
    body.replaceChildren(...inOrder().map((row) => {
      const line = h("tr", { class: row.trial === of.picked ? "picked" : "" }, h("td", {}, row.place),
        of.columns.map((column) => h("td", {}, column.show(row[column.key]))));
      line.addEventListener("click", () => onPick(row.trial));
      return line;
    }));
  }

  function inOrder() {
    if (of.sorted === null) return of.rows;
    const sign = of.isDown ? -1 : 1;
    return [...of.rows].sort((a, b) => sign * compare(a[of.sorted], b[of.sorted]));
  }

  table.update = (rows, metric, picked) => {
    const print = JSON.stringify([rows, metric, picked]);
    if (table.drawn === print) return;
    table.drawn = print;
    of.rows = rows.map((row, i) => ({ ...row, place: i + 1 }));
    of.columns = columnsOf(rows[0] ?? {}, metric);
    of.picked = picked;
    draw();
  };
  return table;
}

const number = (text) => (text === "" || text === undefined || text === null ? NaN : Number(text));

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return String(a).localeCompare(String(b));
}

function columnsOf(row, metric) {
  const show = (of) => (Number.isNaN(number(of)) ? String(of ?? "") : value(number(of)));
  const names = Object.keys(row);
  const own = names.filter((name) => !name.includes("/") && !["trial", "best_step", "ended", "place"].includes(name));
  const chosen = [metric, ...own, "best_step", "train/loss", "trial", "ended"].filter((name, i, all) => names.includes(name) && all.indexOf(name) === i);
  return chosen.map((key) => ({
    key, name: key === "best_step" ? "at step" : key.includes("/") ? key : lastPart(key).replaceAll("_", " "),
    show: key === "trial" ? shortTrial : key === "ended" ? (of) => String(of).split(":")[0] : show,
  }));
}

// Before the leaderboard is written: the trials' best evaluations so far, as its rows.
export function soFar(trials, metric, falling) {
  const sign = falling.includes(metric) ? 1 : -1;
  return trials.flatMap((trial) => {
    const points = trial.points[metric] ?? [];
    if (points.length === 0) return [];
    const [step, best] = points.reduce((a, b) => (sign * b[1] < sign * a[1] ? b : a));
    const loss = trial.points["train/loss"]?.at(-1)?.[1];
    return [{ trial: trial.id, ...trial.values, best_step: step, [metric]: best, "train/loss": loss ?? "" }];
  }).sort((a, b) => sign * (a[metric] - b[metric]));
}

export function eventItem(event) {
  const item = h("li", { "data-level": event.level },
    h("time", { class: "soft small", datetime: new Date(1000 * event.created_at).toISOString(), title: moment(event.created_at) }, clock(event.created_at)),
    h("span", {}, event.message));
  item.update = () => setAttribute(item, "data-level", event.level);
  return item;
}

export function metrics(result) {
  const shown = Object.entries(result.metrics).filter(([name]) => name.startsWith("eval/"));
  return h("dl", { class: "facts" }, shown.map(([name, of]) => h("div", {}, h("dt", {}, name), h("dd", {}, value(of)))),
    h("div", {}, h("dt", {}, "trained tokens"), h("dd", {}, count(result.trained_tokens))));
}
