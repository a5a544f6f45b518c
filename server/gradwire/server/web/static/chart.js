// One series of several runs over each other, drawn with uPlot.

import { ofSteps, ofValues } from "./axes.js";
import { h, setText } from "./dom.js";
import { value } from "./format.js";

const HEIGHT = 230;
const FACED = { "rolled back": "--bad", written: "--bad", recovered: "--wait", fenced: "--wait", rejected: "--wait", "round dropped": "--wait" };

const HELD = /^lr(\/.*)?$/; // has a value at each change, which holds until the next one

/** A point for each bucket of a series; what comes later replaces what began at its first step or after. */
export class Points {
  constructor() {
    this.step = [];
    this.mean = [];
    this.min = [];
    this.max = [];
    this.spread = false;
  }

  take({ from, step, mean, min, max }) {
    let end = this.step.length;
    while (end && this.step[end - 1] >= from) end--;
    const put = (kept, news) => {
      kept.length = end;
      for (const each of news) kept.push(each);
    };
    put(this.step, step);
    put(this.mean, mean);
    put(this.min, min ?? mean);
    put(this.max, max ?? mean);
    this.spread ||= Boolean(min);
  }

  get last() {
    return this.mean.at(-1);
  }
}

/** An exponential mean that leaves out what is not finite, and does not begin at 0. Weight: 0 to below 1. */
export function smoothed(values, weight) {
  let sum = 0;
  let share = 0;
  return values.map((each) => {
    if (each === null || each === undefined) return each;
    sum = sum * weight + (1 - weight) * each;
    share = share * weight + (1 - weight);
    return sum / share;
  });
}

/** The places of values that no line leads to: the only one, or one between such that are not finite. */
function alone(line) {
  const found = [];
  let before = null;
  let last = null;
  let lastAt = 0;
  for (let at = 0; at <= line.length; at++) {
    const each = at < line.length ? line[at] : null;
    if (each === undefined) continue; // a step of another run
    if (before === null && last !== null && each === null) found.push(lastAt);
    [before, last, lastAt] = [last, each, at];
  }
  return found;
}

export class Chart {
  /** shared: what all charts of a page agree on; see run.js. */
  constructor(name, shared) {
    this.name = name;
    this.held = HELD.test(name);
    this.shared = shared;
    this.log = false;
    this.legend = h("div.legend");
    this.logButton = h("button.toggle", { type: "button", "aria-pressed": "false", title: "Logarithmic values", onclick: () => this.setLog(!this.log) }, "log");
    this.plotElement = h("div.plot");
    this.element = h("article.chart", { "aria-label": name },
      h("header", {}, h("h3", {}, name), this.legend, this.logButton), this.plotElement);
    this.shape = "";
    this.seen = false;
    this.waits = false; // to be drawn when somebody sees it: a run may have dozens of curves
    new ResizeObserver(() => this.resize()).observe(this.plotElement);
    new IntersectionObserver((found) => this.look(found.at(-1).isIntersecting), { rootMargin: "300px" }).observe(this.element);
  }

  /** It has come near to what is seen of the page, or has left it. */
  look(seen) {
    this.seen = seen;
    if (seen && this.waits) this.draw();
  }

  setLog(log) {
    this.log = log;
    this.logButton.setAttribute("aria-pressed", String(log));
    this.draw();
  }

  resize() {
    const width = this.plotElement.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  /** The runs that have this series, the page's own first. */
  get runs() {
    return this.shared.runs.filter((run) => run.series.has(this.name) && !run.hidden);
  }

  draw() {
    this.waits = !this.seen;
    if (this.waits) return;
    const { runs } = this;
    const width = this.plotElement.clientWidth;
    if (!runs.length || !width) return;
    const weight = this.held ? 0 : this.shared.smoothing;
    const spread = runs.map((run) => !this.held && run.series.get(this.name).spread);
    const shape = JSON.stringify([runs.map((run) => run.color), spread, weight > 0, this.log, this.shared.logStep, this.shared.theme]);
    const data = this.data(runs, weight);
    if (shape !== this.shape) {
      this.shape = shape;
      this.plot?.destroy();
      this.plot = new uPlot(this.options(runs, spread, weight, width), data, this.plotElement);
      this.zoom();
    } else {
      this.plot.setData(data, !this.shared.zoom);
      if (this.shared.zoom) this.plot.redraw(true, true);
    }
    this.drawLegend(null);
  }

  data(runs, weight) {
    const usable = (values) => (this.log ? values.map((each) => (each > 0 ? each : null)) : values);
    const least = this.shared.logStep ? 1 : -Infinity;
    const tables = runs.map((run) => {
      const points = run.series.get(this.name);
      const start = points.step.findIndex((step) => step >= least);
      const cut = (values) => (start > 0 ? values.slice(start) : start < 0 ? [] : values);
      const columns = [cut(points.step), usable(cut(points.mean))];
      if (this.held) {
        columns[0] = [...columns[0], Math.max(points.step.at(-1) + 1, run.lastStep)];
        columns[1] = [...columns[1], columns[1].at(-1)];
        return columns;
      }
      if (weight > 0) columns.push(usable(cut(smoothed(points.mean, weight))));
      if (points.spread) columns.push(usable(cut(points.min)), usable(cut(points.max)));
      return columns;
    });
    return tables.length === 1 ? tables[0] : uPlot.join(tables);
  }

  options(runs, spread, weight, width) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const ink = color("--muted");
    const series = [{}];
    const bands = [];
    this.lines = [];
    runs.forEach((run, place) => {
      const stroke = color(run.color);
      const points = { show: false, filter: (plot, index) => alone(plot.data[index]), size: 4, width: 0, fill: stroke };
      series.push({ stroke: weight > 0 ? `${stroke}55` : stroke, width: weight > 0 ? 1 : 1.75, points, ...(this.held ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}) });
      if (weight > 0) series.push({ stroke, width: 2, points: { show: false } });
      this.lines.push(series.length - 1);
      if (!spread[place]) return;
      const edge = { stroke: "transparent", width: 0, points: { show: false } };
      bands.push({ series: [series.length + 1, series.length], fill: `${stroke}22` });
      series.push(edge, edge);
    });
    const axis = { stroke: ink, font: `11px ${color("--font")}`, ticks: { show: false }, grid: { stroke: color("--line"), width: 1 } };
    return {
      width,
      height: HEIGHT,
      padding: [10, 14, 0, 0],
      series,
      bands,
      legend: { show: false },
      scales: { x: { time: false, distr: this.shared.logStep ? 3 : 1 }, y: { distr: this.log ? 3 : 1 } },
      axes: [
        { ...axis, ...ofSteps(this.shared.logStep), grid: { show: false }, size: 30, space: 80 },
        { ...axis, ...ofValues(this.log), size: 54, gap: 6 },
      ],
      cursor: {
        y: false,
        points: { size: 7 },
        drag: { x: true, y: false, setScale: false },
        sync: { key: "gradwire", setSeries: false },
        bind: { dblclick: () => () => this.shared.setZoom(null) },
      },
      hooks: {
        setCursor: [(plot) => this.drawLegend(plot.cursor.idx)],
        setSelect: [(plot) => this.selected(plot)],
        draw: [(plot) => this.drawEvents(plot, color)],
      },
    };
  }

  selected(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.shared.setZoom(range);
  }

  /** Shows the part that all charts show; null: all. */
  zoom() {
    if (!this.plot) return;
    const range = this.shared.zoom;
    if (range) this.plot.setScale("x", { min: range[0], max: range[1] });
    else this.plot.setData(this.plot.data, true);
  }

  drawLegend(place) {
    const entries = this.runs.map((run, index) => {
      const line = this.plot?.data[this.lines?.[index]];
      const found = place === null || place === undefined || !line ? run.series.get(this.name).last : near(line, place);
      return { run, found };
    });
    while (this.legend.children.length > entries.length) this.legend.lastChild.remove();
    while (this.legend.children.length < entries.length) this.legend.append(h("span", {}, h("i"), h("b")));
    entries.forEach(({ run, found }, index) => {
      const [mark, text] = this.legend.children[index].children;
      mark.dataset.color = run.color.slice(2);
      mark.hidden = entries.length < 2;
      this.legend.children[index].title = run.title;
      setText(text, value(found));
    });
  }

  /** A line at the step of each event that says something of the curve. */
  drawEvents(plot, color) {
    const { ctx } = plot;
    const { left, top, width, height } = plot.bbox;
    ctx.save();
    for (const event of this.shared.events) {
      const faced = FACED[event.kind] ?? (event.kind === "hyperparameters" ? "--muted" : null);
      const chosen = event.number === this.shared.chosenEvent;
      if (!faced && !chosen) continue;
      const x = plot.valToPos(event.step, "x", true);
      if (!(x >= left && x <= left + width)) continue;
      ctx.strokeStyle = color(faced ?? "--accent");
      ctx.globalAlpha = chosen ? 1 : 0.55;
      ctx.lineWidth = (chosen ? 2 : 1) * devicePixelRatio;
      ctx.setLineDash(chosen ? [] : [3 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
    }
    ctx.restore();
  }
}

/** The value at a place, or the one before it: a joined run has none at the steps of others. */
function near(line, place) {
  for (let each = place; each >= 0; each--) if (line[each] !== undefined) return line[each];
  return undefined;
}
