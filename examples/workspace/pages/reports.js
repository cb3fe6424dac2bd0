import { on } from "./events.js";
import { $, make, page, send, time } from "./shell.js";

const MAX_REPORTS = 20; // as many as the server keeps
const number = new Intl.NumberFormat("en");
const states = {
  running: "Computing",
  done: "Done",
  stopped: "Stopped",
  interrupted: "Interrupted, because its server ended",
  unknown: "Not known any more",
};

// The streams of the reports that are being computed. Each ends with its report.
/** @type {Map<string, EventSource>} */
const streams = new Map();

/** @typedef {import("./events.js").Report} Report */
/** @typedef {Omit<Report, "state"> & { state: Report["state"] | "unknown" }} ShownReport */

/** @param {Report} report */
function follow(report) {
  const events = new EventSource(`/reports/${encodeURIComponent(report.id)}/events`);
  streams.set(report.id, events);
  on(events, "report", newer => { report = newer; putReport(report); });
  // The last will of a report whose server was killed.
  on(events, "interrupted", () => putReport({ ...report, state: "interrupted" }));
  on(events, "hub.bye", ({ reconnect }) => { if (reconnect === "never") unfollow(report.id); });
  // The browser has given up, because the server does not know the run any more.
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) putReport({ ...report, state: "unknown" }); };
}

function unfollow(id) {
  streams.get(id)?.close();
  streams.delete(id);
}

const soFar = primes => `${number.format(primes)} so far`;

/** @param {ShownReport} report */
function makeCard({ id, limit, started, percent, primes, took_ms, state }) {
  const title = `Primes below ${number.format(limit)}`;
  const bar = make("progress", { max: 100, value: percent, "aria-label": title });
  const stop = make("button", { type: "button", class: "quiet" }, "Stop");
  stop.onclick = () => send("DELETE", `/reports/${encodeURIComponent(id)}`);
  const result = state === "done"
    ? make("p", { class: "result" }, make("strong", {}, number.format(primes)), ` primes, in ${(took_ms / 1000).toFixed(1)} s`)
    : make("p", { class: "muted" }, soFar(primes));
  return make("li", { class: `card report ${state}`, "data-id": id },
    make("header", {}, make("strong", {}, title), time(started)),
    make("div", { class: "progress" }, bar, make("span", {}, `${percent} %`)),
    make("footer", {}, result, make("span", { class: "badge" }, states[state]), ...(state === "running" ? [stop] : [])));
}

// Changes a card in place. A new button would lose a click whose mouse button is still down.
function showProgress(card, { percent, primes }) {
  card.querySelector("progress").value = percent;
  card.querySelector(".progress span").textContent = `${percent} %`;
  card.querySelector("footer p").textContent = soFar(primes);
}

/** @param {ShownReport} report */
function putReport(report) {
  if (report.state !== "running") unfollow(report.id);
  else if (!streams.has(report.id)) follow(/** @type {Report} */ (report));
  const old = $("reports").querySelector(`[data-id="${CSS.escape(report.id)}"]`);
  if (old?.matches(".running") && report.state === "running") showProgress(old, report);
  else if (old) old.replaceWith(makeCard(report));
  else $("reports").prepend(makeCard(report));
  while ($("reports").childElementCount > MAX_REPORTS) $("reports").lastChild.remove();
  $("empty").hidden = true;
}

page({
  topics: user => [`reports/${user}`],
  draw(reports) {
    for (const id of streams.keys()) unfollow(id);
    $("reports").replaceChildren();
    $("empty").hidden = reports.length > 0;
    reports.forEach(putReport);
  },
  on: {
    report(report) {
      // The stream of the report has newer figures than the event of its start.
      if (report.state !== "running" || !streams.has(report.id)) putReport(report);
    },
  },
});

// A page in the back/forward cache must not hold connections. Its `draw` opens the streams again.
addEventListener("pagehide", () => { for (const id of streams.keys()) unfollow(id); });

$("start").onsubmit = event => {
  event.preventDefault();
  send("POST", "/reports", { limit: Number($("limit").value) });
};
