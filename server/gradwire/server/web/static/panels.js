// What stands beside the curves.

import { h, time } from "./dom.js";
import { bytes, count, duration, span, value } from "./format.js";

const EVENTS_SHOWN = 12;
const WAYS = { stream: "by gRPC", lane: "by lane", shared_memory: "in shared memory" };
const LONG_SECONDS = 2; // what is waited for less is how training goes

/** Replaces what a panel shows; nothing: the panel is not there. */
function fill(panel, heading, about, ...children) {
  panel.hidden = false;
  panel.replaceChildren(h("header", {}, h("h2", {}, heading), about ? h("small", {}, about) : ""), ...children);
}

const pairs = (found) => h("dl.pairs", {}, ...found.flatMap(([key, text]) => [h("dt", {}, key), h("dd", {}, text)]));

/** What streams have brought and taken, by the way; nothing: none has. */
function drawTraffic(found) {
  const told = ["received", "sent"].map((way) => {
    const ways = Object.entries(found[way]).map(([path, sum]) => `${bytes(sum)} ${WAYS[path] ?? path}`);
    return ways.length ? `${way} ${ways.join(", ")}` : "";
  }).filter(Boolean);
  return told.length ? h("p.traffic", { title: "values that the run's streams have carried since the server began" }, told.join(" · ")) : "";
}

export function drawWorkers(panel, { workers, worker_count: total, round, bytes: sums }) {
  const traffic = drawTraffic(sums);
  if (!workers.length) {
    fill(panel, "Workers", "", h("p.nothing", {}, "Nobody is attached."), traffic);
    return;
  }
  const list = h("ul.workers", {}, ...workers.map((worker) => {
    const states = [worker.leads && "leads", !worker.attached && (worker.leased ? "its stream broke" : "left"), worker.aside && "set aside", worker.contributed && "has contributed"].filter(Boolean);
    const { outcomes, blocks } = worker;
    const taken = blocks ? `${["p50", "p90", "p99"].map((each) => duration(blocks[each])).join(" · ")} a block` : "";
    const waits = worker.waits_seconds >= LONG_SECONDS ? `waits for ${worker.waits_for} · ${span(worker.waits_seconds)}` : "";
    const told = outcomes ? Object.entries(outcomes).filter(([, found]) => found).map(([kind, found]) => `${count(found)} ${kind}`).join(" · ") : "";
    return h("li", { "data-attached": String(worker.attached) },
      h("div", {}, h("i.dot", { "data-state": worker.attached ? "training" : "idle" }), h("b", {}, worker.id), h("small", {}, states.join(" · "))),
      h("small", {}, [`sequence ${count(worker.sequence)}`, blocks ? `${bytes(blocks.received_bytes)} a block` : "", outcomes ? `step ${count(worker.step)}` : "", worker.share ? `${(100 * worker.share).toFixed(0)}% of the weight` : ""].filter(Boolean).join(" · ")),
      taken ? h("small", { title: `median, 90 and 99 per cent of the last ${blocks.count} blocks` }, taken) : "",
      told ? h("small", {}, told) : "", waits ? h("small.waits", {}, waits) : "");
  }));
  const open = round ? h("p.round", {}, h("b", {}, `Round ${count(round.number)}`), " ",
    round.waiting_for ? `${round.waiting_for} · ${span(round.open_seconds)}` : "is not open yet",
    h("small", {}, Object.entries(round.outcomes).map(([kind, found]) => `${count(found)} ${kind}`).join(" · "))) : "";
  fill(panel, "Workers", total > workers.length ? `${workers.length} of ${count(total)}` : total > 1 ? count(total) : "", open, list, traffic);
}

export function drawEvents(panel, events, choose) {
  const all = [...events].reverse();
  const open = panel.dataset.open === "true";
  const shown = open ? all : all.slice(0, EVENTS_SHOWN);
  const list = h("ol.events", {}, ...shown.map((event) => {
    const times = event.count > 1 ? time(event.since, ` · ${count(event.count)} times, the first `) : "";
    return h("li", {
      tabindex: "0", "data-kind": event.kind,
      onmouseenter: () => choose(event.number), onmouseleave: () => choose(0), onfocus: () => choose(event.number), onblur: () => choose(0),
    }, h("b", {}, event.kind), h("span", {}, event.text), h("small", {}, `step ${count(event.step)} · `, time(event.seconds), times));
  }));
  const more = all.length > EVENTS_SHOWN ? h("button.quiet", { type: "button", onclick: () => {
    panel.dataset.open = String(!open);
    drawEvents(panel, events, choose);
  } }, open ? "Show fewer" : `Show all ${count(all.length)}`) : "";
  fill(panel, "Events", "", all.length ? list : h("p.nothing", {}, "Nothing has happened yet."), more);
}

export function drawSettings(panel, { groups, group_count: total }) {
  const one = (group) => pairs(Object.entries(group).filter(([key]) => key !== "optimizer").map(([key, found]) => [key, typeof found === "number" ? value(found) : String(found)]));
  const parts = groups.length === 1
    ? [one(groups[0])]
    : groups.map((group, index) => h("details", {}, h("summary", {}, `Group ${index} · ${group.optimizer} · lr ${value(group.lr)}`), one(group)));
  fill(panel, "Hyperparameters", groups.length === 1 ? groups[0].optimizer : `${groups.length < total ? `${groups.length} of ` : ""}${count(total)} groups`, ...parts);
}

export function drawSnapshots(panel, { snapshots, snapshot_count: total }) {
  if (!snapshots.length) {
    fill(panel, "Snapshots", "", h("p.nothing", {}, "None has been taken."));
    return;
  }
  fill(panel, "Snapshots", total > snapshots.length ? `${snapshots.length} of ${count(total)}` : "",
    h("ul.snapshots", {}, ...snapshots.map((found) => h("li", {}, h("b", {}, `${found.id}`), h("span", {}, found.label || "by the server"),
      h("small", {}, `step ${count(found.step)} · ${bytes(found.size_bytes)} · `, time(found.created))))));
}

export function drawAbout(panel, found) {
  const facts = [["dtype", found.dtype], ["slots", found.slots.join(", ") || "none"], ["not finite", found.non_finite]];
  for (const key of ["clip_norm", "clip_value"]) if (found[key] !== null) facts.push([key, value(found[key])]);
  if (found.ttl_seconds) facts.push(["lives", `${span(found.ttl_seconds)} after its last use`]);
  for (const [key, each] of Object.entries(found.shared ?? {})) if (each !== null) facts.push([key, String(each)]);
  const tensors = h("details", {}, h("summary", {}, `${count(found.tensor_count)} tensor${found.tensor_count === 1 ? "" : "s"}`),
    h("ul.tensors", {}, ...found.tensors.map((tensor) => h("li", {}, h("span", {}, tensor.name), h("small", {}, tensor.shape.join(" × ") || "scalar")))),
    found.tensors.length < found.tensor_count ? h("p.nothing", {}, `and ${count(found.tensor_count - found.tensors.length)} more`) : "");
  fill(panel, "Layout", "", pairs(facts), tensors);
}

export function drawServer(panel, { seconds, bytes: sums, loop_lag_seconds: lag }) {
  const words = { receive: "receive", compute: "compute", journal: "disk", answer: "answer" };
  const rows = Object.entries(words).filter(([phase]) => seconds[phase]).map(([phase, word]) =>
    h("tr", {}, h("th", { scope: "row" }, word), ...["p50", "p90", "p99"].map((each) => h("td", {}, duration(seconds[phase][each])))));
  const table = rows.length
    ? h("table.phases", {}, h("thead", {}, h("tr", {}, h("th", {}, "A block"), ...["median", "90 %", "99 %"].map((each) => h("th", { scope: "col" }, each)))), h("tbody", {}, ...rows))
    : h("p.nothing", {}, "No block in the last minute.");
  fill(panel, "The server", "all runs together, last minute", table,
    pairs([["received", bytes(sums.received)], ["sent", bytes(sums.sent)], ["event loop lag", duration(lag)]]));
}
