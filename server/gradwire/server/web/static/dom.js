// Elements. What comes from others becomes text, never markup: nothing here parses HTML.

import { ago, moment } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("a.name", {href}, "text", child, ...). Properties that begin with "on" are listeners. */
export function h(kind, properties = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** As `h`, of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets an element's text where it is another one: a selection in it stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** How long ago something was; goes on by itself. `seconds` since 1970. */
export function time(seconds, before = "", after = "") {
  const made = h("time", { title: moment(seconds) }, `${before}${ago(seconds)}${after}`);
  const again = setInterval(() => {
    if (made.isConnected) setText(made, `${before}${ago(seconds)}${after}`);
    else clearInterval(again);
  }, 5000);
  return made;
}

/** Calls `work` at most once a frame. */
export function eachFrame(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      work();
    });
  };
}
