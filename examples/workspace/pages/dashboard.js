// Charts of the last two minutes, with one line for each instance that shares the log.
import { $, make, page } from "./shell.js";

const SECONDS = 120;
const percent = { unit: value => `${value.toFixed(value < 100 ? 1 : 0)} %`, top: highest => [5, 10, 25, 50].find(top => highest < top) ?? 100 };
const bytes = { unit: value => (value < 2 ** 30 ? `${(value / 2 ** 20).toFixed(1)} MiB` : `${(value / 2 ** 30).toFixed(2)} GiB`) };
const count = { unit: value => String(value), top: highest => Math.max(4, Math.ceil(highest * 1.25)) };

/** @typedef {import("./events.js").Sample} Sample */
/**
 * A chart: `of` returns the value of a sample or `null`, and `top` the upper end of the axis. The
 * elements are created below.
 * @typedef {object} Chart
 * @property {string} title
 * @property {(sample: Sample) => any} of
 * @property {(value: number) => string} unit
 * @property {(highest: number, last?: Sample) => number} top
 * @property {any} [value]
 * @property {any} [top_label]
 * @property {any} [svg]
 */
/** @type {Chart[]} */
const charts = [
  { title: "Processor, machine", of: s => s.machine_cpu, ...percent, top: () => 100 },
  { title: "Processor, server", of: s => s.process_cpu, ...percent },
  { title: "Memory, machine", of: s => s.machine_memory, ...bytes, top: (_, last) => last?.machine_memory_total ?? 1 },
  { title: "Memory, server", of: s => s.process_memory, ...bytes, top: highest => highest * 1.25 },
  { title: "Open pages", of: s => s.connections, ...count },
  { title: "Events delivered a second", of: s => s.delivered, ...count },
];

const SVG = "http://www.w3.org/2000/svg";
for (const chart of charts) {
  chart.value = make("strong");
  chart.top_label = make("span", { class: "muted" });
  chart.svg = document.createElementNS(SVG, "svg");
  chart.svg.setAttribute("viewBox", `0 0 ${SECONDS} 100`);
  chart.svg.setAttribute("preserveAspectRatio", "none");
  chart.svg.setAttribute("aria-hidden", "true");
  const axis = make("footer", { class: "muted" }, make("span", {}, "2 min ago"), make("span", {}, "now"));
  $("charts").append(make("section", { class: "card chart" },
    make("header", {}, make("h2", {}, chart.title), chart.value), chart.top_label, chart.svg, axis));
}

/** @type {Map<string, Map<number, Sample>>} */
const byInstance = new Map();

/** @param {Sample} sample */
function put(sample) {
  const samples = byInstance.get(sample.instance) ?? new Map();
  byInstance.set(sample.instance, samples.set(sample.at, sample));       // a sample may arrive twice
}

function draw() {
  const now = Math.max(0, ...[...byInstance.values()].flatMap(samples => [...samples.keys()]));
  for (const [instance, samples] of byInstance) {
    for (const at of samples.keys()) if (at < now - SECONDS * 1000) samples.delete(at);
    if (!samples.size) byInstance.delete(instance);
  }
  const instances = [...byInstance].sort(([a], [b]) => (a < b ? -1 : 1));
  $("legend").hidden = instances.length < 2;
  $("legend").replaceChildren(...instances.map(([name], index) => make("li", { class: `line-${index % 3}` }, name)));
  charts.forEach(chart => plot(chart, now, instances.map(([, samples]) => [...samples.values()].sort((a, b) => a.at - b.at))));
}

/**
 * @param {Chart} chart
 * @param {number} now
 * @param {Sample[][]} lines
 */
function plot({ svg, value, top_label, of, unit, top }, now, lines) {
  const known = lines.map(samples => samples.filter(sample => of(sample) !== null));
  const all = known.flat();
  svg.toggleAttribute("hidden", !all.length);
  if (!all.length) return value.replaceChildren("not available on this system");
  // A stopped instance has a line, but no current value.
  value.replaceChildren(...known.flatMap((samples, index) => {
    const last = samples.at(-1);
    return last && last.at > now - 5000 ? [make("span", { class: `line-${index % 3}` }, unit(of(last)))] : [];
  }));
  const most = top(Math.max(...all.map(of)), all.at(-1)) || 1;
  top_label.textContent = unit(most);
  svg.replaceChildren(...known.flatMap((samples, index) => {
    const points = samples.map(sample =>
      `${(SECONDS - (now - sample.at) / 1000).toFixed(2)},${(100 - (of(sample) / most) * 100).toFixed(2)}`);
    if (!points.length) return [];
    const [from, to] = [points[0], points[points.length - 1]].map(point => point.split(",")[0]);
    return [shape("polygon", `${from},100 ${points.join(" ")} ${to},100`, index), shape("polyline", points.join(" "), index)];
  }));
}

function shape(tag, points, index) {
  const shape = document.createElementNS(SVG, tag);
  shape.setAttribute("points", points);
  shape.setAttribute("class", `line-${index % 3}`);
  return shape;
}

page({
  topics: () => ["metrics"],
  draw(samples) { byInstance.clear(); samples.forEach(put); draw(); },
  on: { sample: sample => { put(sample); draw(); } },
});
