// One run: its curves, alone or over others, and what else there is to know of it.

import { Chart, Points } from "./chart.js";
import { eachFrame, h, setText } from "./dom.js";
import { ago, bytes, count, moment, short, title } from "./format.js";
import { drawAbout, drawEvents, drawServer, drawSettings, drawSnapshots, drawWorkers } from "./panels.js";
import { Stream } from "./stream.js";

const COLORS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const OWN = /^(gradient_norm|steps_per_second|lr(\/.*)?)$/;
const WORDS = { gradient_norm: "gradient norm", steps_per_second: "steps a second", lr: "learning rate" };

export function showRun(main, page, name) {
  document.title = `${title(name)} · gradwire`;
  const others = () => new URLSearchParams(location.search).getAll("with").filter((each) => each !== name).slice(0, COLORS.length - 1);
  const charts = new Map();
  const shared = { runs: [], events: [], smoothing: 0, logStep: false, zoom: null, chosenEvent: 0, theme: 0, setZoom };
  let row = null;
  let stream = null;

  // --- what stands there ---------------------------------------------------------------------------------------------

  const state = h("span.pill");
  const loss = h("p.banner", { hidden: true, role: "status" });
  const missing = h("p.banner.wrong", { hidden: true, role: "status" });
  const facts = Object.fromEntries(["Step", "Steps a second", "Workers", "Parameters", "Kept", "Memory", "Disk", "Last step"].map((label) => [label, h("dd", {}, "–")]));
  const chips = h("div.chips", { "aria-label": "Runs in the curves" });
  const names = h("datalist", { id: "names" });
  const add = h("input.filter", { list: "names", placeholder: "Compare with…", "aria-label": "Compare with a run", onfocus: offerNames, onchange: () => addRun(add.value) });
  const smoothing = h("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: "0", "aria-label": "Smoothing", oninput: () => smooth(Number(smoothing.value)) });
  const smoothingText = h("output", {}, "0");
  const logStep = h("button.toggle", { type: "button", "aria-pressed": "false", title: "Logarithmic steps", onclick: () => setLogStep(!shared.logStep) }, "log steps");
  const reset = h("button.toggle", { type: "button", hidden: true, onclick: () => setZoom(null) }, "whole range");
  const drawn = h("section.charts", { "aria-label": "Curves" });
  const empty = h("section.empty", {}, h("h2", {}, "No curves yet"), h("p", {}, "The gradient norm comes with the first step; what else is drawn, its workers log:"),
    h("pre", {}, h("code", {}, 'run.step(gradients, log={"loss": loss})')));
  const panels = Object.fromEntries(["workers", "events", "settings", "snapshots", "about", "server"].map((kind) => [kind, h("section.panel")]));
  main.replaceChildren(
    h("nav.crumbs", { "aria-label": "Where you are" }, h("a", { href: "/" }, "Runs"), h("span", { "aria-hidden": "true" }, "/"), h("span", {}, title(name))),
    h("div.head", {}, h("h1", {}, title(name)), state),
    missing, loss,
    h("dl.facts", {}, ...Object.entries(facts).map(([label, found]) => h("div", {}, h("dt", {}, label), found))),
    h("div.columns", {},
      h("div.curves", {},
        h("div.bar", {}, chips, add, names, h("label.smoothing", {}, "Smoothing", smoothing, smoothingText), logStep, reset),
        empty, drawn),
      h("aside", { "aria-label": "About the run" }, ...Object.values(panels))),
  );

  // --- what comes ----------------------------------------------------------------------------------------------------

  const draw = eachFrame(() => {
    for (const run of shared.runs) for (const each of run.series.keys()) if (!charts.has(each)) addChart(each);
    empty.hidden = charts.size > 0;
    for (const chart of charts.values()) chart.draw();
  });
  page.onTheme = () => (shared.theme++, draw());

  function follow() {
    stream?.stop();
    const all = [name, ...others()];
    const known = new Map(shared.runs.map((run) => [run.name, run]));
    shared.runs = all.map((each, place) => ({ ...(known.get(each) ?? { name: each, title: title(each), series: new Map(), hidden: false }), color: COLORS[place] }));
    drawChips();
    const run = (each) => shared.runs.find((found) => found.name === each);
    const own = (work) => (found) => found.name === undefined || found.name === name ? work(found) : undefined;
    stream = new Stream(`/stream?${all.map((each) => `run=${encodeURIComponent(each)}`).join("&")}`, {
      hello: page.hello,
      whole({ name: each }) {
        const found = run(each);
        if (found) Object.assign(found, { series: new Map(), lastStep: 0, missing: undefined });
        drawChips();
        draw();
      },
      missing({ name: each, why }) {
        if (each === name) return setMissing(why);
        const found = run(each);
        if (found) found.missing = why;
        drawChips();
      },
      row: own((found) => {
        row = found;
        setMissing("");
        drawFacts();
      }),
      series({ name: each, series }) {
        const found = run(each);
        if (!found) return;
        for (const [key, news] of Object.entries(series)) {
          if (!found.series.has(key)) found.series.set(key, new Points());
          found.series.get(key).take(news);
          found.lastStep = Math.max(found.lastStep ?? 0, news.step.at(-1) + news.width - 1);
        }
        draw();
      },
      about: (found) => drawAbout(panels.about, found),
      settings(found) {
        setText(loss, found.loss);
        loss.hidden = !found.loss;
        drawSettings(panels.settings, found);
        drawSnapshots(panels.snapshots, found);
      },
      workers: (found) => drawWorkers(panels.workers, found),
      events({ events }) {
        shared.events = events;
        drawEvents(panels.events, events, (number) => {
          shared.chosenEvent = number;
          for (const chart of charts.values()) chart.plot?.redraw(false);
        });
        draw();
      },
      server: (found) => drawServer(panels.server, found),
    }, (found, why) => {
      page.state(found, why);
      if (found === "damaged") setMissing(why, found);
      else if (found === "missing" || found === "refused") setMissing(why);
    });
  }

  function setMissing(why, how = "not there") {
    setText(missing, why);
    missing.hidden = !why;
    if (!why) return;
    row = null; // what was known of it holds no more
    state.dataset.state = how === "damaged" ? how : "gone";
    setText(state, how);
  }

  // --- how it is drawn -----------------------------------------------------------------------------------------------

  function drawFacts() {
    state.dataset.state = row.state;
    setText(state, row.state);
    if (row.state === "damaged") return setMissing(row.why, row.state);
    setText(facts.Step, count(row.step));
    setText(facts["Steps a second"], row.steps_per_second ? short(row.steps_per_second) : "–");
    setText(facts.Workers, count(row.workers));
    setText(facts.Parameters, short(row.parameters));
    facts.Parameters.title = count(row.parameters);
    setText(facts.Kept, row.durability);
    setText(facts.Memory, bytes(row.memory_bytes));
    setText(facts.Disk, row.disk_bytes ? bytes(row.disk_bytes) : "–");
    setText(facts["Last step"], row.progress ? ago(row.progress) : "–");
    facts["Last step"].title = row.progress ? moment(row.progress) : "none since the server began";
  }
  setInterval(() => row && drawFacts(), 5000);

  function addChart(key) {
    const isOwn = OWN.test(key);
    const chart = new Chart(key, shared);
    if (isOwn) setText(chart.element.querySelector("h3"), WORDS[key] ?? key.replace("lr/", "learning rate of group "));
    charts.set(key, chart);
    chart.element.dataset.own = String(isOwn);
    drawn.insertBefore(chart.element, isOwn ? null : drawn.querySelector("[data-own=true]"));
  }

  function drawChips() {
    chips.replaceChildren(...(shared.runs.length > 1 ? shared.runs : []).map((run) => {
      const dot = h("i.swatch");
      dot.dataset.color = run.color.slice(2);
      const away = run.name === name ? null : h("button", { type: "button", "aria-label": `Leave ${run.title} out`, onclick: () => dropRun(run.name) }, "×");
      return h(`span.chip${run.missing ? ".gone" : ""}`, { title: run.missing ?? "" }, dot, run.name === name ? h("span", {}, run.title) : h("a", { href: `/${run.name}` }, run.title), away);
    }));
  }

  // --- what can be chosen --------------------------------------------------------------------------------------------

  function setOthers(list) {
    const query = list.map((each) => `with=${encodeURIComponent(each)}`).join("&");
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    follow();
    draw();
  }

  function addRun(text) {
    const wanted = text.trim();
    if (!wanted) return;
    add.value = "";
    const full = /^(runs|tenants)\//.test(wanted) ? wanted : `runs/${wanted}`;
    if (full !== name && !others().includes(full)) setOthers([...others(), full]);
  }

  const dropRun = (each) => setOthers(others().filter((found) => found !== each));

  async function offerNames() {
    const answer = await fetch("/api/runs").catch(() => null);
    if (!answer?.ok) return;
    const offered = (await answer.json()).map((run) => run.name).filter((each) => each !== name && !others().includes(each)).slice(0, 500);
    names.replaceChildren(...offered.map((each) => h("option", { value: each.replace(/^runs\//, "") })));
  }

  function smooth(weight) {
    shared.smoothing = weight;
    smoothing.value = String(weight);
    setText(smoothingText, String(weight));
    draw();
  }

  function setLogStep(on) {
    shared.logStep = on;
    logStep.setAttribute("aria-pressed", String(on));
    draw();
  }

  function setZoom(range) {
    shared.zoom = range;
    reset.hidden = !range;
    for (const chart of charts.values()) chart.zoom();
  }

  page.key("l", "logarithmic values in all curves", () => {
    const on = ![...charts.values()].some((chart) => chart.log);
    for (const chart of charts.values()) chart.setLog(on);
  });
  page.key("o", "logarithmic steps", () => setLogStep(!shared.logStep));
  page.key("]", "more smoothing", () => smooth(Math.min(0.99, Number((shared.smoothing + 0.1).toFixed(2)))));
  page.key("[", "less smoothing", () => smooth(Math.max(0, Number((shared.smoothing - 0.1).toFixed(2)))));
  page.key("Escape", "the whole range; drag over a curve to see a part", () => setZoom(null));
  page.key("c", "compare with another run", () => add.focus());
  page.key("h", "all runs", () => (location.href = "/"));
  follow();
}
