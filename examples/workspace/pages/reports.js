import { $, make, page, send, time } from "/assets/shell.js";

const KEPT = 20; // as many as the server keeps
const number = new Intl.NumberFormat("en");
const states = { running: "Computing", done: "Done", stopped: "Stopped: the server was restarted" };

function card({ id, limit, started, percent, primes, took_ms, state }) {
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

function put(report) {
  const old = $("reports").querySelector(`[data-id="${CSS.escape(report.id)}"]`);
  if (old) old.replaceWith(card(report));
  else $("reports").prepend(card(report));
  while ($("reports").childElementCount > KEPT) $("reports").lastChild.remove();
  $("empty").hidden = true;
}

page({
  topics: user => [`reports/${user}`],
  draw(reports) {
    $("reports").replaceChildren();
    $("empty").hidden = reports.length > 0;
    reports.forEach(put);
  },
  on: { report: put },
});

$("start").onsubmit = event => {
  event.preventDefault();
  send("POST", "/reports", { limit: Number($("limit").value) });
};
