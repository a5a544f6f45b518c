// All runs: a line each, which moves as the run does.

import { eachFrame, h, setText, svg } from "./dom.js";
import { ago, bytes, count, duration, moment, short, title } from "./format.js";
import { Stream } from "./stream.js";

const SHOWN = 200;
const { compare: inOrder } = new Intl.Collator("en", { numeric: true });
const STATES = ["training", "waiting", "idle", "damaged"];
const COLUMNS = [
  ["name", "Run", (run) => title(run.name)],
  ["spark", "", null],
  ["step", "Step", (run) => run.step ?? -1],
  ["rate", "Steps/s", (run) => run.steps_per_second ?? -1],
  ["workers", "Workers", (run) => run.workers ?? -1],
  ["size", "Parameters", (run) => run.parameters ?? -1],
  ["durability", "Kept", (run) => run.durability ?? ""],
  ["progress", "Last step", (run) => run.progress ?? 0],
];

export function showRuns(main, page) {
  document.title = "Runs · gradwire";
  const runs = new Map();
  const rows = new Map();
  const chosen = new Set();
  let sort = { by: "state", down: false };
  let wanted = "";
  let only = "";
  let loaded = false;
  let server = null;
  let sent = null;

  // --- what stands there ---------------------------------------------------------------------------------------------

  const tiles = {
    training: tile("Training now"),
    rate: tile("Steps a second"),
    workers: tile("Workers"),
    memory: tile("Memory set aside"),
    block: tile("Block, median · p99"),
    traffic: tile("Received · sent"),
  };
  const filter = h("input.filter", { type: "search", placeholder: "Filter runs", "aria-label": "Filter runs by name", oninput: () => ((wanted = filter.value.trim().toLowerCase()), draw()) });
  const segments = h("div.segments", { role: "group", "aria-label": "Filter runs by state" });
  for (const state of ["", ...STATES]) {
    segments.append(h("button", { type: "button", "aria-pressed": String(state === ""), "data-state": state, onclick: () => choose(state) }, h("span", {}, state || "all"), h("b", {})));
  }
  const compare = h("a.primary.compare", { hidden: true });
  const body = h("tbody");
  const heads = COLUMNS.map(([key, label, get]) =>
    h(`th.${key}`, { scope: "col", "aria-sort": "none" }, get ? h("button", { type: "button", onclick: () => order(key) }, label) : h("span.hidden", {}, "Curve")));
  const table = h("table.runs", {}, h("thead", {}, h("tr", {}, h("th.pick", {}, h("span.hidden", {}, "Compare")), ...heads)), body);
  const note = h("p.note", { hidden: true });
  const empty = h("section.empty", { hidden: true });
  main.replaceChildren(
    h("h1.hidden", {}, "Runs"),
    h("section.tiles", { "aria-label": "The server" }, ...Object.values(tiles).map((each) => each.element)),
    h("div.bar", {}, filter, segments, compare),
    table, note, empty,
  );

  // --- what comes ----------------------------------------------------------------------------------------------------

  const draw = eachFrame(render);
  new Stream("/stream", {
    hello: page.hello,
    runs({ whole, rows: news, gone }) {
      if (whole) runs.clear();
      for (const run of news) runs.set(run.name, run);
      for (const name of gone) runs.delete(name);
      loaded = true;
      draw();
    },
    server(found) {
      const now = performance.now() / 1000;
      if (sent) found.rates = ["received", "sent"].map((way) => Math.max(0, (found.bytes[way] - sent.bytes[way]) / (now - sent.at)));
      sent = { bytes: found.bytes, at: now };
      server = found;
      draw();
    },
  }, page.state);
  setInterval(draw, 5000); // times go on where nothing else does

  function choose(state) {
    only = state;
    for (const button of segments.children) button.setAttribute("aria-pressed", String(button.dataset.state === state));
    draw();
  }

  function order(key) {
    const first = key !== "name"; // large numbers and late times come first, names by the alphabet
    if (sort.by !== key) sort = { by: key, down: first };
    else if (sort.down === first) sort = { by: key, down: !first };
    else sort = { by: "state", down: false };
    draw();
  }

  // --- how it is drawn -----------------------------------------------------------------------------------------------

  function sorted(found) {
    const byName = (one, other) => inOrder(one.name, other.name);
    if (sort.by === "state") return found.sort((one, other) => STATES.indexOf(one.state) - STATES.indexOf(other.state) || byName(one, other));
    const get = COLUMNS.find(([key]) => key === sort.by)[2];
    const way = sort.down ? -1 : 1;
    return found.sort((one, other) => {
      const [a, b] = [get(one), get(other)];
      return (typeof a === "string" ? inOrder(a, b) : a - b) * way || byName(one, other);
    });
  }

  function render() {
    if (!table.isConnected) return;
    const all = [...runs.values()];
    for (const button of segments.children) {
      const state = button.dataset.state;
      setText(button.lastChild, String(state ? all.filter((run) => run.state === state).length : all.length));
    }
    drawTiles(all);
    const found = sorted(all.filter((run) => (!only || run.state === only) && title(run.name).toLowerCase().includes(wanted)));
    const shown = found.slice(0, SHOWN);
    const kept = new Set(shown.map((run) => run.name));
    for (const [name, row] of rows) {
      if (kept.has(name)) continue;
      row.element.remove();
      rows.delete(name);
    }
    for (const name of chosen) if (!runs.has(name)) chosen.delete(name);
    shown.forEach((run, place) => {
      const row = rows.get(run.name) ?? made(run.name);
      row.draw(run);
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
    });
    heads.forEach((head, place) => head.setAttribute("aria-sort", COLUMNS[place][0] === sort.by ? (sort.down ? "descending" : "ascending") : "none"));
    setText(note, found.length > SHOWN ? `${count(found.length - SHOWN)} more: a filter brings them here` : "");
    note.hidden = found.length <= SHOWN;
    table.hidden = !found.length;
    empty.hidden = Boolean(found.length) || !loaded;
    if (!empty.hidden) drawEmpty(all.length);
    compare.hidden = !chosen.size;
    if (chosen.size) {
      const [first, ...others] = [...chosen];
      compare.href = `/${first}${others.length ? `?${others.map((name) => `with=${encodeURIComponent(name)}`).join("&")}` : ""}`;
      setText(compare, chosen.size === 1 ? "Open 1 run" : `Compare ${chosen.size} runs`);
    }
  }

  function drawTiles(all) {
    const sum = (key) => all.reduce((total, run) => total + (run[key] ?? 0), 0);
    tiles.training.set(count(all.filter((run) => run.state === "training").length), `of ${count(all.length)} run${all.length === 1 ? "" : "s"}`);
    tiles.rate.set(short(sum("steps_per_second")));
    tiles.workers.set(count(sum("workers")), "attached");
    if (!server) return;
    tiles.memory.set(bytes(server.memory_bytes), `of ${bytes(server.memory_limit_bytes)}`);
    const { compute } = server.seconds;
    tiles.block.set(compute ? `${duration(compute.p50)} · ${duration(compute.p99)}` : "–", compute ? "last minute" : "none lately");
    tiles.traffic.set(server.rates ? server.rates.map((each) => bytes(Math.round(each))).join(" · ") : "–", "a second");
  }

  function drawEmpty(total) {
    if (total) {
      empty.replaceChildren(h("h2", {}, "No run looks like that"), h("p", {}, "Clear the filter to see all of them."));
      return;
    }
    empty.replaceChildren(
      h("h2", {}, "No runs yet"),
      h("p", {}, "They appear here as soon as a client creates one:"),
      h("pre", {}, h("code", {}, 'from gradwire.client import Adam, connect\n\nwith connect("host:50051") as server:\n    run = server.create_run("demo", {"w": w}, Adam(lr=1e-3))\n    run.step({"w": gradient}, log={"loss": loss})')),
    );
  }

  function made(name) {
    const pick = h("input", { type: "checkbox", "aria-label": `Compare ${title(name)}`, onchange: () => (pick.checked ? chosen.add(name) : chosen.delete(name), draw()) });
    pick.checked = chosen.has(name);
    const dot = h("i.dot");
    const link = h("a", { href: `/${name}` }, title(name));
    const about = h("small");
    const cells = Object.fromEntries(COLUMNS.slice(2).map(([key, label]) => [key, h(`td.${key}`, { "data-label": label })]));
    const spark = h("td.spark");
    const element = h("tr", {}, h("td.pick", {}, pick), h("th.name", { scope: "row" }, dot, h("span", {}, link, about)), spark, ...Object.values(cells));
    let curve = "";
    const row = {
      element, link, pick,
      draw(run) {
        dot.dataset.state = run.state;
        dot.title = run.state;
        element.dataset.state = run.state;
        if (run.state === "damaged") {
          setText(about, `damaged: ${run.why}`);
          return;
        }
        setText(about, [run.state, run.optimizer, run.shared ? "shared" : ""].filter(Boolean).join(" · "));
        setText(cells.step, count(run.step));
        setText(cells.rate, run.steps_per_second ? short(run.steps_per_second) : "–");
        setText(cells.workers, run.workers ? count(run.workers) : "–");
        setText(cells.size, short(run.parameters));
        cells.size.title = `${count(run.parameters)} parameters, ${bytes(run.memory_bytes)} of memory, ${bytes(run.disk_bytes)} of the disk`;
        setText(cells.durability, run.durability);
        setText(cells.progress, run.progress ? ago(run.progress) : "–");
        cells.progress.title = run.progress ? moment(run.progress) : "no step since the server began";
        const drawn = JSON.stringify(run.spark);
        if (drawn !== curve) {
          curve = drawn;
          spark.replaceChildren(sparkLine(run.spark));
        }
      },
    };
    rows.set(name, row);
    return row;
  }

  // --- keys ----------------------------------------------------------------------------------------------------------

  function move(by) {
    const links = [...body.querySelectorAll("th a")];
    const place = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, place + by))]?.focus();
  }

  page.key("/", "filter", () => filter.focus());
  page.key("j", "next run", () => move(1));
  page.key("k", "previous run", () => move(-1));
  page.key("x", "choose the run for a comparison", () => document.activeElement.closest("tr")?.querySelector("input")?.click());
  page.key("c", "compare the chosen runs", () => !compare.hidden && compare.click());
}

function tile(label) {
  const figure = h("b", {}, "–");
  const more = h("small");
  return {
    element: h("div.tile", {}, h("span", {}, label), figure, more),
    set(text, about = "") {
      setText(figure, text);
      setText(more, about);
    },
  };
}

function sparkLine(spark) {
  const found = (spark?.values ?? []).map((value, place) => [place, value]).filter(([, value]) => value !== null);
  if (found.length < 2) return "";
  const values = found.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const last = spark.values.length - 1;
  const points = found.map(([place, value]) => `${(2 + (116 * place) / last).toFixed(1)},${(high > low ? 26 - (22 * (value - low)) / (high - low) : 15).toFixed(1)}`);
  const [x, y] = points.at(-1).split(",");
  const drawn = svg("svg", { viewBox: "0 0 120 30", width: 120, height: 30, role: "img", "aria-label": `${spark.name}, as it went` },
    svg("polygon", { points: `2,30 ${points.join(" ")} ${x},30` }), svg("polyline", { points: points.join(" ") }), svg("circle", { cx: x, cy: y, r: 2 }));
  const about = svg("title");
  about.textContent = spark.name;
  drawn.prepend(about);
  return drawn;
}
