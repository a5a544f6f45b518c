// Server-sent events over fetch, which unlike EventSource tells why a server refuses, and which comes back by itself.

const SILENCE_MS = 15000;
const HIDDEN_MS = 20000;
const LONGEST_WAIT_MS = 5000;

/**
 * Follows a path until `stop`.
 *
 * handlers: kind of event -> function of its data.
 * onState: told "live", "lost", "busy", "missing" or "damaged" (it tries again), "denied" or "refused" (it does not),
 * and a text.
 *
 * A page that nobody sees holds no connection, of which browsers have few; nor does one that waits for the way back.
 */
export class Stream {
  constructor(path, handlers, onState) {
    this.path = path;
    this.handlers = handlers;
    this.onState = onState;
    this.lastId = "";
    this.stopped = false;
    this.away = document.hidden;
    this.listeners = new AbortController();
    const listen = (target, kind, work) => target.addEventListener(kind, work, { signal: this.listeners.signal });
    listen(document, "visibilitychange", () => this.look(!document.hidden, HIDDEN_MS));
    listen(window, "pagehide", () => this.look(false, 0));
    listen(window, "pageshow", () => this.look(!document.hidden, 0));
    this.run();
  }

  stop() {
    this.stopped = true;
    this.listeners.abort();
    clearTimeout(this.leaving);
    this.abort?.abort();
    this.wake?.();
  }

  /** Somebody looks, or nobody does: then the connection ends after a while. */
  look(seen, afterMs) {
    clearTimeout(this.leaving);
    const leave = () => {
      this.away = true;
      this.abort?.abort();
    };
    if (seen) {
      this.away = false;
      this.wake?.();
    } else if (afterMs) this.leaving = setTimeout(leave, afterMs);
    else leave();
  }

  async run() {
    let waitMs = 250;
    while (!this.stopped) {
      while (this.away && !this.stopped) await this.pause(0);
      const began = Date.now();
      const goesOn = await this.once().catch(() => {
        if (!this.away && !this.stopped) this.onState("lost", "the server does not answer; trying again");
        return true;
      });
      if (!goesOn) return;
      waitMs = Date.now() - began > 3000 ? 250 : Math.min(waitMs * 1.6, LONGEST_WAIT_MS);
      await this.pause(waitMs);
    }
  }

  /** Waits so long, or until somebody looks; 0: until somebody looks. */
  pause(ms) {
    return new Promise((resolve) => {
      const timer = ms ? setTimeout(resolve, ms) : 0;
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** One connection, to its end; returns whether another one may succeed. */
  async once() {
    this.abort = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (this.lastId) headers["Last-Event-ID"] = this.lastId;
    const answer = await fetch(this.path, { headers, signal: this.abort.signal, cache: "no-store" });
    if (!answer.ok) {
      const why = (await answer.text()).trim();
      const states = { 401: "denied", 404: "missing", 409: "damaged" };
      const state = answer.status >= 500 ? "busy" : (states[answer.status] ?? "refused");
      this.onState(state, why);
      return ["busy", "missing", "damaged"].includes(state); // a run of this name may come, or come back
    }
    this.onState("live", "");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const silence = setTimeout(() => this.abort.abort(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done) break;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) this.take(part);
    }
    this.onState("lost", this.ending || "the connection has ended; trying again");
    this.ending = "";
    return true;
  }

  take(text) {
    let kind = "message";
    let data = "";
    for (const line of text.split("\n")) {
      const colon = line.indexOf(": ");
      const field = line.slice(0, colon);
      if (field === "event") kind = line.slice(colon + 2);
      else if (field === "data") data += line.slice(colon + 2);
      else if (field === "id") this.lastId = line.slice(colon + 2);
    }
    if (kind === "end") this.ending = JSON.parse(data).why;
    else if (data && this.handlers[kind]) this.handlers[kind](JSON.parse(data));
  }
}
