// Curves of many trials as SVG: one is highlighted, the others are quiet; values by pointer or arrow keys.

import { h, setAttribute, setText, svg } from "./dom.js";
import { count, point, shortTrial, value } from "./format.js";

const HEIGHT = 250, NARROW = 300;
const LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 40;

// `title`: what is drawn; `update(trials, metric, highlighted)`: trials as the service has them.
export function chart(title, onPick) {
  const picture = svg("svg", { class: "chart", tabindex: 0, role: "application", "aria-label": title });
  const grid = svg("g", { class: "grid-lines" }), curves = svg("g", {}), cursor = svg("g", { class: "cursor" });
  picture.append(grid, curves, cursor);
  const log = h("input", { type: "checkbox" });
  const heading = h("h3", {}, title);
  const readout = h("p", { class: "readout soft small", "aria-live": "polite" });
  const element = h("figure", { class: "card" },
    h("div", { class: "head" }, heading, h("label", { class: "small" }, log, " log scale")), picture, readout);
  const of = { trials: [], metric: null, best: null, width: 560, at: null };

  function drawn() {
    return of.trials
      .map((trial) => ({ trial, points: usable(trial.points[of.metric] ?? [], log.checked) }))
      .filter(({ points }) => points.length > 0);
  }

  function draw() {
    const lines = drawn(), scale = scales(lines, of.width, log.checked);
    setAttribute(picture, "viewBox", `0 0 ${of.width} ${HEIGHT}`);
    grid.replaceChildren(...axes(scale, of, lines.length > 0));
    const ordered = [...lines].sort((a, b) => (a.trial.id === of.best) - (b.trial.id === of.best));
    curves.replaceChildren(...ordered.flatMap((line) => curve(line, scale, line.trial.id === of.best)));
    setAttribute(picture, "aria-label", describe(title, of.metric, lines, of.best));
    pointAt(of.at);
  }

  function pointAt(at) {
    of.at = at;
    const lines = drawn(), scale = scales(lines, of.width, log.checked);
    const line = at && lines.find(({ trial }) => trial.id === at.id);
    if (!line) {
      cursor.replaceChildren();
      setText(readout, lines.length ? hintText(lines.length) : "Nothing was measured yet.");
      return;
    }
    const place = Math.max(0, Math.min(line.points.length - 1, at.place));
    const [step, y] = line.points[place];
    of.at = { id: at.id, place };
    cursor.replaceChildren(
      svg("path", { class: "picked", d: path(line.points, scale) }),
      svg("line", { x1: scale.x(step), x2: scale.x(step), y1: TOP, y2: HEIGHT - BOTTOM }),
      svg("circle", { cx: scale.x(step), cy: scale.y(y), r: 4 }));
    setText(readout, `${named(line.trial)} · step ${count(step)} · ${of.metric} ${value(y)}`);
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * of.width;
    const y = ((event.clientY - box.top) / box.height) * HEIGHT;
    pointAt(nearest(drawn(), scales(drawn(), of.width, log.checked), x, y));
  });
  picture.addEventListener("pointerleave", () => pointAt(null));
  picture.addEventListener("blur", () => pointAt(null));
  picture.addEventListener("click", () => of.at && onPick(of.at.id));
  picture.addEventListener("keydown", (event) => {
    const lines = drawn();
    if (!event.key.startsWith("Arrow") || lines.length === 0) return;
    event.preventDefault();
    const now = of.at ?? { id: (lines.find(({ trial }) => trial.id === of.best) ?? lines[0]).trial.id, place: -1 };
    const here = lines.findIndex(({ trial }) => trial.id === now.id);
    const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0;
    const other = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
    const line = lines[(here + other + lines.length) % lines.length];
    pointAt({ id: line.trial.id, place: Math.max(0, now.place + sideways) });
  });
  log.addEventListener("change", draw);

  element.update = (trials, metric, best) => {
    setText(heading, metric ?? title);
    Object.assign(of, { trials, metric, best });
    draw();
  };
  element.watch = (signal) => {
    const watcher = new ResizeObserver(([entry]) => {
      const width = Math.max(NARROW, Math.round(entry.contentRect.width - 28));
      if (width !== of.width) {
        of.width = width;
        draw();
      }
    });
    watcher.observe(element);
    signal.addEventListener("abort", () => watcher.disconnect());
  };
  return element;
}

const usable = (points, isLog) => (isLog ? points.filter(([, y]) => y > 0) : points);

const named = (trial) => {
  const values = point(trial.values);
  return values ? `${shortTrial(trial.id)} (${values})` : shortTrial(trial.id);
};

const hintText = (number) =>
  number > 1 ? "Point at a curve, or use the arrow keys, to read its values." : "Point at the curve to read its values.";

function describe(title, metric, lines, best) {
  const line = lines.find(({ trial }) => trial.id === best) ?? lines[0];
  if (!line) return `${title}: nothing was measured yet`;
  const [step, y] = line.points.at(-1);
  return `${metric} by step, ${lines.length} curves; ${shortTrial(line.trial.id)} is at ${value(y)} at step ${step}. Arrow keys read values.`;
}

function scales(lines, width, isLog) {
  const points = lines.flatMap((line) => line.points);
  const to = isLog ? Math.log10 : (y) => y;
  const ys = points.map(([, y]) => to(y));
  let low = Math.min(...ys), high = Math.max(...ys);
  if (points.length === 0) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const most = Math.max(1, ...points.map(([step]) => step)), margin = (high - low) * 0.05;
  const isPositive = !isLog && low >= 0;
  low = isPositive ? Math.max(0, low - margin) : low - margin;
  high += margin;
  return {
    low, high, most, isLog, width,
    x: (step) => LEFT + (step / most) * (width - LEFT - RIGHT),
    y: (y) => TOP + ((high - to(y)) / (high - low)) * (HEIGHT - TOP - BOTTOM),
  };
}

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function powers(low, high) {
  const found = [];
  const every = Math.max(1, Math.ceil((high - low) / 5));
  for (let at = Math.ceil(low); at <= high; at += every) found.push(10 ** at);
  if (found.length >= 2) return found;
  return ticks(10 ** low, 10 ** high, 4).filter((at) => at > 0);
}

function axes(scale, of, hasLines) {
  const bottom = HEIGHT - BOTTOM, right = scale.width - RIGHT;
  const across = svg("text", { class: "axis", x: (LEFT + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step");
  const base = svg("line", { class: "base", x1: LEFT, x2: right, y1: bottom, y2: bottom });
  if (!hasLines) return [base, across];
  const rows = (scale.isLog ? powers(scale.low, scale.high) : ticks(scale.low, scale.high, 4)).flatMap((at) => [
    svg("line", { x1: LEFT, x2: right, y1: scale.y(at), y2: scale.y(at) }),
    svg("text", { x: LEFT - 8, y: scale.y(at) + 4, "text-anchor": "end" }, value(at)),
  ]);
  const columns = ticks(0, scale.most, scale.width < 420 ? 4 : 6).filter((at) => Number.isInteger(at)).map((at) =>
    svg("text", { x: scale.x(at), y: bottom + 18, "text-anchor": "middle" }, count(at)));
  return [...rows, base, ...columns, across];
}

const path = (points, scale) =>
  points.map(([step, y], i) => `${i ? "L" : "M"}${scale.x(step).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");

function curve({ trial, points }, scale, isBest) {
  const line = svg("path", { class: isBest ? "line best" : "line", d: path(points, scale), "data-trial": trial.id });
  if (points.length > 24 && !isBest) return [line];
  const dots = points.length > 24 ? [points.at(-1)] : points;
  return [line, ...dots.map(([step, y]) =>
    svg("circle", { class: isBest ? "dot best" : "dot", cx: scale.x(step), cy: scale.y(y), r: isBest ? 2.6 : 1.8 }))];
}

function nearest(lines, scale, x, y) {
  let found = null, least = Infinity;
  for (const { trial, points } of lines) {
    points.forEach(([step, at], place) => {
      const distance = (scale.x(step) - x) ** 2 + (scale.y(at) - y) ** 2;
      if (distance < least) [least, found] = [distance, { id: trial.id, place }];
    });
  }
  return found;
}
