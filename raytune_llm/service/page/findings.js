// What the data check found, as the data report shows it.

import { h, svg } from "./dom.js";
import { count, many, size } from "./format.js";

const GROUPS = [["problem", "Problems"], ["warning", "Warnings"], ["note", "Notes"]];
const WIDTH = 320, HEIGHT = 96, BASE = 20;

export function statusOf(report) {
  const has = (severity) => report.findings.some((finding) => finding.severity === severity);
  return has("problem") ? "problem" : has("warning") ? "warning" : "sound";
}

export function findings(report) {
  return [
    h("div", { class: `verdict ${statusOf(report)}` }, upper(report.verdict)),
    GROUPS.map(([severity, heading]) => group(heading, report.findings.filter((found) => found.severity === severity))),
    Object.keys(report.splits).length ? [records(report), h("div", { class: "grid fit" }, histograms(report), labels(report))] : null,
    report.previews.length ? preview(report.previews[0]) : null,
  ];
}

const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function group(heading, found) {
  return found.length ? [h("h3", {}, heading), found.map(one)] : null;
}

function one(finding) {
  const rest = (finding.count ?? 0) - finding.places.length;
  return h("div", { class: `finding ${finding.severity}` },
    h("span", { class: "kind" }, finding.kind), h("span", {}, finding.text),
    finding.places.length ? h("ul", {},
      finding.places.map((place) => h("li", {}, h("span", { class: "where" }, place.where),
        place.excerpt ? [" · ", h("span", { class: "excerpt" }, place.excerpt)] : null)),
      rest > 0 ? h("li", {}, `… ${count(rest)} more`) : null) : null);
}

function records({ splits, carved, max_tokens: most }) {
  const rows = Object.entries(splits);
  return [h("h3", {}, "Records"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Records" }, h("table", {},
    h("thead", {}, h("tr", {}, ["split", "records", "tokens", "longest", "cut", "text"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(([name, split]) => h("tr", {},
      h("td", {}, name, carved && name === "eval" ? h("span", { class: "soft" }, " (carved)") : null),
      h("td", {}, count(split.num_records)), h("td", {}, split.prompt_tokens ? count(tokens(split)) : "–"),
      h("td", {}, split.truncation ? count(split.truncation.longest_tokens) : "–"),
      h("td", {}, split.truncation ? count(split.truncation.cut) : "–"), h("td", {}, size(split.num_bytes))))))),
  most ? h("p", { class: "soft small" }, `A sequence has at most ${count(most)} tokens.`) : null];
}

export const tokens = (split) => (split.prompt_tokens?.total ?? 0) + (split.completion_tokens?.total ?? 0);

function histograms({ splits }) {
  const train = splits.train;
  if (!train) return null;
  const found = [["prompt", train.prompt_tokens], ["completion", train.completion_tokens]].filter(([, of]) => of?.histogram.counts.length);
  if (!found.length) return null;
  return found.map(([what, lengths]) => h("div", { class: "card" }, h("h3", {}, `${upper(what)} tokens`), bars(what, lengths)));
}

function bars(what, { histogram: { edges, counts }, median, longest }) {
  const most = Math.max(...counts), step = WIDTH / Math.max(counts.length, 8), every = Math.ceil(counts.length / 9);
  const label = `${what}: median ${median}, longest ${longest} tokens`;
  return svg("svg", { class: "bars", viewBox: `0 -14 ${WIDTH} ${HEIGHT + BASE + 14}`, role: "img", "aria-label": label },
    counts.map((number, i) => {
      const tall = Math.max((HEIGHT * number) / most, number ? 1.5 : 0), x = i * step + 1;
      return [
        svg("rect", { x, y: HEIGHT - tall, width: step - 2, height: tall },
          svg("title", {}, `${count(edges[i])} to ${count(edges[i + 1] - 1)} tokens: ${count(number)}`)),
        i % every === 0 ? svg("text", { x, y: HEIGHT + 14 }, count(edges[i])) : null,
        number && every === 1 ? svg("text", { x: x + step / 2 - 1, y: HEIGHT - tall - 3, "text-anchor": "middle" }, count(number)) : null,
      ];
    }),
    svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }));
}

function labels({ splits }) {
  const found = Object.entries(splits).filter(([, split]) => split.labels);
  if (!found.length) return null;
  return found.map(([name, split]) => {
    const total = Object.values(split.labels).reduce((sum, number) => sum + number, 0) || 1;
    const rest = split.num_labels - Object.keys(split.labels).length;
    return h("div", { class: "card" }, h("h3", {}, `Labels, ${name}`), h("table", {}, h("tbody", {}, Object.entries(split.labels).map(([label, number]) => {
      const bar = h("div", { class: "share" });
      bar.style.width = `${(100 * number) / total}%`;
      return h("tr", {}, h("td", { class: "wrap" }, label), h("td", {}, count(number)), h("td", { class: "track" }, bar));
    }))), rest > 0 ? h("p", { class: "soft small" }, `… ${many(rest, "other")}`) : null);
  });
}

function preview(of) {
  return h("details", {}, h("summary", {}, "As the model sees it"),
    h("p", { class: "soft small" }, h("span", { class: "where" }, of.where), " · what counts as the answer is ", h("mark", {}, "marked")),
    Object.values(of.sequences).map((segments) => h("pre", { tabindex: 0 }, segments.map((segment) =>
      segment.has_loss ? h("mark", {}, segment.text) : segment.text))));
}
