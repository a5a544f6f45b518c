// The frame of both pages: which one it is, the theme, the keys, and who looks at it.

import { h, setText } from "./dom.js";
import { showRuns } from "./runs.js";
import { showRun } from "./run.js";

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const keys = new Map();

const page = {
  /** Binds a key that is pressed alone, outside of fields. */
  key(name, about, work) {
    keys.set(name, { about, work });
  },

  /** Told by streams; see `Stream`. */
  state(state, why) {
    connection.dataset.state = state;
    const words = { live: "live", lost: "reconnecting", busy: "waiting", denied: "signed out", missing: "not there", refused: "not there" };
    setText(connection, words[state] ?? state);
    connection.title = why;
    if (state === "denied") signIn(why);
  },

  /** The first event of a stream. */
  hello({ id, tenant, role }) {
    setText(document.getElementById("who"), id ? `${id} · ${tenant} · ${role}` : "");
    document.getElementById("sign-out").hidden = !id;
  },

  /** Called when colours have changed. */
  onTheme: () => {},
};

function signIn(why) {
  const message = h("p.wrong", { role: "alert" });
  const field = h("input", {
    type: "password", name: "token", id: "token", autocomplete: "off", required: true, placeholder: "gw_…",
  });
  const form = h(
    "form.sign-in",
    { action: "/login", method: "post" },
    h("h1", {}, "Sign in"),
    h("p", {}, "This server asks who looks. Paste a token of the role read or more; this browser is then known for twelve hours, or until the token is revoked."),
    h("label", { for: "token" }, "Token"),
    field,
    h("button.primary", { type: "submit" }, "Sign in"),
    message,
  );
  form.addEventListener("submit", async (submitted) => {
    submitted.preventDefault();
    const answer = await fetch("/login", { method: "POST", body: new URLSearchParams({ token: field.value }) }).catch(() => null);
    if (answer?.ok) return location.reload();
    field.value = "";
    field.focus();
    setText(message, answer ? (await answer.text()).trim() : "the server does not answer");
  });
  main.replaceChildren(form);
  setText(document.getElementById("who"), "");
  document.getElementById("sign-out").hidden = true;
  connection.title = why;
  field.focus();
}

// --- theme -----------------------------------------------------------------------------------------------------------

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");

function drawTheme() {
  const theme = root.dataset.theme ?? "";
  setText(themeButton, { "": "◐", light: "☀", dark: "☾" }[theme]);
  themeButton.setAttribute("aria-label", `Theme: ${theme || "as the system's"}`);
  page.onTheme();
}

function nextTheme() {
  const order = dark.matches ? ["", "light", "dark"] : ["", "dark", "light"];
  const next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % order.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  if (next) localStorage.setItem("gradwire-theme", next);
  else localStorage.removeItem("gradwire-theme");
  drawTheme();
}

themeButton.addEventListener("click", nextTheme);
dark.addEventListener("change", () => drawTheme());
page.key("t", "theme: the system's, light, dark", nextTheme);

// --- keys ------------------------------------------------------------------------------------------------------------

const help = document.getElementById("help");

function openHelp() {
  const list = document.getElementById("help-keys");
  list.replaceChildren(...[...keys].flatMap(([name, { about }]) => [h("dt", {}, h("kbd", {}, name)), h("dd", {}, about)]));
  help.showModal();
}

document.getElementById("help-open").addEventListener("click", openHelp);
page.key("?", "these keys", openHelp);
document.addEventListener("keydown", (pressed) => {
  const field = pressed.target.closest?.("input, textarea, select");
  if (pressed.ctrlKey || pressed.metaKey || pressed.altKey || help.open) return;
  if (field && !(pressed.key === "Escape")) return;
  if (field) return field.blur();
  const bound = keys.get(pressed.key);
  if (!bound) return;
  pressed.preventDefault();
  bound.work();
});

document.getElementById("sign-out").addEventListener("click", async () => {
  await fetch("/logout", { method: "POST" }).catch(() => null);
  location.reload();
});

// --- which page ------------------------------------------------------------------------------------------------------

const name = decodeURIComponent(location.pathname).slice(1);
if (name) showRun(main, page, name);
else showRuns(main, page);
drawTheme();
