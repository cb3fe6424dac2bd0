import { $, make, page, send, time } from "/assets/shell.js";

const MAX_REPORTS = 20; // as many as the server keeps
const number = new Intl.NumberFormat("en");
const states = { running: "Computing", done: "Done", stopped: "Stopped, because the server shut down" };

function makeCard({ id, limit, started, percent, primes, took_ms, state }) {
  const title = `Primes below ${number.format(limit)}`;
  const bar = make("progress", { max: 100, value: percent, "aria-label": title });
  const result = state === "done"
    ? make("p", { class: "result" }, make("strong", {}, number.format(primes)), ` primes, in ${(took_ms / 1000).toFixed(1)} s`)
    : make("p", { class: "muted" }, `${number.format(primes)} so far`);
  return make("li", { class: `card report ${state}`, "data-id": id },
    make("header", {}, make("strong", {}, title), time(started)),
    make("div", { class: "progress" }, bar, make("span", {}, `${percent} %`)),
    make("footer", {}, result, make("span", { class: "badge" }, states[state])));
}

function putReport(report) {
  const old = $("reports").querySelector(`[data-id="${CSS.escape(report.id)}"]`);
  if (old) old.replaceWith(makeCard(report));
  else $("reports").prepend(makeCard(report));
  while ($("reports").childElementCount > MAX_REPORTS) $("reports").lastChild.remove();
  $("empty").hidden = true;
}

page({
  topics: user => [`reports/${user}`],
  draw(reports) {
    $("reports").replaceChildren();
    $("empty").hidden = reports.length > 0;
    reports.forEach(putReport);
  },
  on: { report: putReport },
});

$("start").onsubmit = event => {
  event.preventDefault();
  send("POST", "/reports", { limit: Number($("limit").value) });
};
