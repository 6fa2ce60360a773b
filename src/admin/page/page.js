// The page of the admin listener. It asks the listener's other pages and shows what they say.
// Whatever comes from a request is written as text; nothing here makes markup from strings.
"use strict";

(() => {
  const THEMES = ["auto", "light", "dark"];
  const MAX_ROWS = 500;
  const BATCH = 200;
  const SAMPLES = 60;
  const EVERY = 2000;

  // --- Small things -------------------------------------------------------------------------------

  const $ = (id) => document.getElementById(id);

  const stored = {
    get(name) { try { return localStorage.getItem(`portcullis.${name}`); } catch { return null; } },
    set(name, value) {
      try {
        if (value === null) localStorage.removeItem(`portcullis.${name}`);
        else localStorage.setItem(`portcullis.${name}`, value);
      } catch { /* Private windows keep nothing: the page works, but forgets. */ }
    },
  };

  /** An element with properties (`class`, `on…`, attributes) and children: text, elements, or nothing. */
  function el(name, props, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(props || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") made.className = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : String(value));
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  }

  const SVG = "http://www.w3.org/2000/svg";
  function svg(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const text = (value) => (value === null || value === undefined ? "" : String(value));
  const short = (value, length) => (text(value).length > length ? `${text(value).slice(0, length)}…` : text(value));
  const sum = (counts) => Object.values(counts || {}).reduce((all, one) => all + one, 0);
  const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

  const numbers = new Intl.NumberFormat("en");
  const number = (value) => (typeof value === "number" ? numbers.format(value) : "–");

  function rate(value) {
    if (typeof value !== "number" || !Number.isFinite(value)) return "–";
    if (value >= 100) return numbers.format(Math.round(value));
    if (value >= 10) return value.toFixed(0);
    return value === 0 ? "0" : value.toFixed(1);
  }

  function bytes(value) {
    if (typeof value !== "number") return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
  }

  function span(seconds) {
    if (typeof seconds !== "number") return "–";
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  }

  function millis(value) {
    if (typeof value !== "number") return "–";
    if (value < 0.1) return `${Math.round(value * 1000)} µs`;
    if (value < 10) return `${value.toFixed(2)} ms`;
    return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
  }

  const pad = (value) => String(value).padStart(2, "0");
  const clock = (date) => `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  const at = (rfc) => { const date = new Date(rfc); return Number.isNaN(date.getTime()) ? text(rfc) : clock(date); };
  const since = (unix) => (unix ? new Date(unix * 1000).toLocaleString() : "–");

  // --- The theme ----------------------------------------------------------------------------------

  function theme(wanted) {
    const name = THEMES.includes(wanted) ? wanted : "auto";
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    stored.set("theme", name === "auto" ? null : name);
    const button = $("theme");
    if (button) {
      button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[name];
      button.setAttribute("aria-label", `${button.textContent} colours${name === "auto" ? ", as the system has them" : ""}: change`);
      button.dataset.theme = name;
    }
  }
  const nextTheme = () => theme(THEMES[(THEMES.indexOf($("theme").dataset.theme) + 1) % THEMES.length]);
  // Before anything is drawn, so that nothing flashes.
  theme(stored.get("theme"));

  // --- Asking the gateway -------------------------------------------------------------------------

  class Trouble extends Error {
    constructor(status, message) { super(message); this.status = status; }
  }

  const line = { up: true, since: 0, wait: 1, timer: 0, restarted: false };

  async function ask(path, options = {}) {
    const headers = { ...(options.headers || {}) };
    const key = stored.get("session");
    if (key) headers["x-portcullis-session"] = key;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      lost();
      throw new Trouble(0, "the gateway does not answer");
    }
    found();
    const body = await answer.text();
    let document_ = null;
    try { document_ = JSON.parse(body); } catch { /* YAML, or nothing. */ }
    if (!answer.ok) {
      if (answer.status === 401 && !options.login) showLogin("The session has ended. Log in again.");
      throw new Trouble(answer.status, (document_ && document_.error) || `the gateway answered ${answer.status}`);
    }
    return options.plain ? body : document_;
  }

  /** The gateway is not there: say so, and look again, ever less often. */
  function lost() {
    if (line.up) { line.up = false; line.since = Date.now(); line.wait = 1; }
    if (line.timer) return;
    const wait = line.wait;
    line.wait = Math.min(line.wait * 2, 10);
    line.timer = setTimeout(async () => {
      line.timer = 0;
      try { await ask("session", { login: true }); } catch { /* Said already. */ }
    }, wait * 1000);
    alarm("bad", `The gateway has not answered since ${clock(new Date(line.since))}: is it running? What is shown is from before. `
      + `Asking again in ${plural(wait, "second")}.`);
    document.body.classList.add("stale");
    pulse("bad", "Not reachable");
  }

  function found() {
    if (line.up) return;
    line.up = true;
    clearTimeout(line.timer);
    line.timer = 0;
    alarm("", "");
    document.body.classList.remove("stale");
    pulse("", "Connecting");
    refresh();
  }

  function alarm(kind, message) {
    const place = $("alarm");
    if (place.textContent === message) return;
    place.className = `alarm ${kind}`;
    place.textContent = message;
  }

  function pulse(kind, message) {
    const place = $("pulse");
    if (place.textContent !== message) place.textContent = message;
    place.className = `pulse ${kind}`;
  }

  // --- Logging in ---------------------------------------------------------------------------------

  let needsLogin = false;

  /** `impossible` says why nobody can log in: there is no token to give. */
  function showLogin(message, impossible) {
    stop();
    needsLogin = true;
    $("app").hidden = true;
    $("login").hidden = false;
    $("login-entry").hidden = Boolean(impossible);
    $("login-error").textContent = impossible || message || "";
    // What was shown is not left behind for whoever comes next.
    $("view").replaceChildren();
    $("vitals").replaceChildren();
    decisions.forget();
    document.title = "Portcullis: log in";
    $("token").value = "";
    $("token").focus();
  }

  async function login(event) {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    $("login-error").textContent = "";
    try {
      const answer = await ask("login", {
        method: "POST",
        login: true,
        headers: { "content-type": "application/json", "x-portcullis-admin": "1" },
        body: JSON.stringify({ token: $("token").value }),
      });
      stored.set("session", answer.key);
      $("token").value = "";
      await begin();
    } catch (error) {
      const why = { 0: "The gateway does not answer. Is it running?", 401: "That is not the token.",
        403: "This gateway has no admin token. Load the page again once there is one.",
        429: "Too many wrong tokens are being sent. Wait a moment." }[error.status];
      $("login-error").textContent = why || `It did not work: ${error.message}.`;
      $("token").focus();
      $("token").select();
    } finally {
      button.disabled = false;
    }
  }

  async function logout() {
    try {
      await ask("logout", { method: "POST", login: true, headers: { "x-portcullis-admin": "1" } });
    } catch { /* The session ends here in any case. */ }
    stored.set("session", null);
    showLogin("You are logged out.");
  }

  // --- Tables -------------------------------------------------------------------------------------

  /** What stands in a cell: a text, or `{ t, c, title, bar, chips, link, sub }`. */
  function fill(place, cell) {
    const is = cell !== null && typeof cell === "object" ? cell : { t: text(cell) };
    const sign = JSON.stringify(is);
    if (place.dataset.sign === sign) return;
    place.dataset.sign = sign;
    place.className = is.c || "";
    if (is.title) place.title = is.title; else place.removeAttribute("title");
    const parts = [];
    if (is.link) parts.push(el("a", { href: is.link }, text(is.t)));
    else if (is.badge) parts.push(el("span", { class: `badge ${is.badge}` }, text(is.t)));
    else if (is.t !== undefined) parts.push(el("span", {}, text(is.t)));
    if (is.bar !== undefined) {
      const inner = el("i");
      inner.style.width = `${Math.min(100, Math.max(is.bar > 0 ? 1 : 0, is.bar * 100))}%`;
      parts.push(el("span", { class: "meter", "aria-hidden": "true" }, inner));
    }
    if (is.chips) {
      parts.push(el("span", {}, is.chips.map((chip) => {
        const props = { class: `chip ${chip.c || ""}`, title: chip.title };
        return chip.link ? el("a", { ...props, href: chip.link }, chip.t) : el("span", props, chip.t);
      })));
    }
    if (is.sub) parts.push(el("small", {}, text(is.sub)));
    place.replaceChildren(...parts);
  }

  /** A table that keeps its rows when it is told of new values: focus, selection and place stay. */
  function table(label, columns) {
    let order = null;
    let last = [];
    const body = el("tbody");
    const rows = new Map();
    const heads = columns.map((column, index) => el("th", { scope: "col", class: column.c },
      column.sort
        ? el("button", { type: "button", class: "sort", onclick: () => {
          order = order && order.index === index ? { index, down: !order.down } : { index, down: column.down === true };
          heads.forEach((head, nth) => {
            if (nth === index) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
            else head.removeAttribute("aria-sort");
          });
          made.show(last);
        } }, column.name)
        : column.name));
    const whole = el("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
      el("table", {}, el("caption", { class: "hidden" }, label), el("thead", {}, el("tr", {}, heads)), body));
    const made = {
      whole,
      show(items) {
        last = items;
        const shown = [...items];
        if (order) {
          const by = columns[order.index].sort;
          shown.sort((a, b) => {
            const [x, y] = [by(a.value), by(b.value)];
            const less = x < y ? -1 : Number(x > y);
            return order.down ? -less : less;
          });
        }
        const gone = new Set(rows.keys());
        shown.forEach((item, index) => {
          gone.delete(item.key);
          let row = rows.get(item.key);
          if (!row) {
            row = el("tr", {}, columns.map((column, nth) =>
              el(nth === 0 ? "th" : "td", { "data-label": column.name, scope: nth === 0 && "row" })));
            rows.set(item.key, row);
          }
          columns.forEach((column, nth) => fill(row.children[nth], withClass(column.cell(item.value), column.c)));
          if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
        });
        for (const key of gone) { rows.get(key).remove(); rows.delete(key); }
      },
    };
    return made;
  }

  function withClass(cell, name) {
    if (!name) return cell;
    const is = cell !== null && typeof cell === "object" ? cell : { t: text(cell) };
    return { ...is, c: `${name} ${is.c || ""}`.trim() };
  }

  const nothing = (title, ...hints) => el("div", { class: "nothing" }, el("h2", {}, title),
    hints.map((hint) => (typeof hint === "string" ? el("p", {}, hint) : hint)));
  const code = (...lines) => el("pre", { class: "hint" }, lines.join("\n"));

  const decisionsOf = (query) => `#/decisions?q=${encodeURIComponent(query)}`;
  const quoted = (value) => (/[\s"]/.test(value) ? `"${value.replaceAll('"', "")}"` : value);
  const holds = (query, ...parts) => {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const all = parts.map((part) => (typeof part === "object" ? JSON.stringify(part) : text(part))).join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  };

  // --- What is on top: numbers that the overview brings -------------------------------------------

  const history = [];
  let overviewNow = null;

  function sample(now) {
    const before = history[history.length - 1];
    const point = { at: performance.now(), requests: sum(now.requests), errors: (now.requests["5xx"] || 0),
      denied: sum(now.refusals), limited: now.limited, uptime: now.uptime_seconds, routes: now.routes, rates: null };
    if (before && point.uptime < before.uptime) history.length = 0;
    const last = history[history.length - 1];
    if (last) {
      const seconds = (point.at - last.at) / 1000;
      if (seconds < 0.5) return;
      const per = (name) => Math.max(0, (point[name] - last[name]) / seconds);
      point.rates = { requests: per("requests"), errors: per("errors"), denied: per("denied"), limited: per("limited") };
    }
    history.push(point);
    if (history.length > SAMPLES + 1) history.shift();
  }

  const ratesNow = () => (history.length ? history[history.length - 1].rates : null) || {};

  function vitals(now) {
    const rates = ratesNow();
    const refusedAll = sum(now.refusals);
    const facts = [
      ["Requests/s", rate(rates.requests), `${number(sum(now.requests))} since the start`],
      ["Refused/s", rate(rates.denied), `${number(refusedAll)} since the start`],
      ["5xx/s", rate(rates.errors), `${number(now.requests["5xx"] || 0)} since the start`],
      ["In flight", number(now.requests_in_flight), "requests under way"],
      ["Streams", number(now.open_streams), "open under a permission"],
    ];
    const place = $("vitals");
    if (place.children.length !== facts.length) {
      place.replaceChildren(...facts.map(([name]) => el("div", {}, el("dt", {}, name), el("dd", {}, "–"))));
    }
    facts.forEach(([, value, title], index) => {
      const entry = place.children[index];
      if (entry.lastChild.textContent !== value) entry.lastChild.textContent = value;
      entry.title = title;
    });
    if (now.draining) pulse("bad", "Draining");
    else if (!now.ready) pulse("bad", "Not ready");
    else if (now.warnings.length) pulse("warn", plural(now.warnings.length, "warning"));
    else pulse("good", "Ready");
    $("foot").textContent = `Portcullis ${now.version} · revision ${now.revision} · up ${span(now.uptime_seconds)}`;
  }

  async function overviewTick() {
    const now = await ask("overview");
    const started = overviewNow && now.uptime_seconds < overviewNow.uptime_seconds;
    overviewNow = now;
    sample(now);
    vitals(now);
    if (started) $("pulse").title = `It was started anew at ${clock(new Date())}`;
    if (current && current.name === "overview") current.view.show(now);
  }

  // --- Sections -----------------------------------------------------------------------------------

  /** A drawing of the last minutes. */
  function chart(label, name, kind) {
    const path = svg("polyline", { points: "", class: kind });
    const top = el("span", { class: "top-mark" });
    const drawing = svg("svg", { viewBox: `0 0 ${SAMPLES} 30`, preserveAspectRatio: "none", role: "img", "aria-label": label }, path);
    const now = el("strong", {}, "–");
    return {
      whole: el("div", { class: "chart" }, el("div", { class: "chart-head" }, el("span", {}, label), now), drawing, top),
      show() {
        const values = history.map((point) => (point.rates ? point.rates[name] : 0));
        const most = Math.max(1, ...values);
        const from = SAMPLES - values.length;
        path.setAttribute("points", values.map((value, index) => `${from + index},${(29 - (value / most) * 28).toFixed(1)}`).join(" "));
        now.textContent = rate(values[values.length - 1]);
        top.textContent = `most ${rate(Math.max(0, ...values))}`;
        drawing.setAttribute("aria-label", `${label}: ${rate(values[values.length - 1])} now, at most ${rate(Math.max(0, ...values))} in the last two minutes`);
      },
    };
  }

  const sections = [
    {
      name: "overview", title: "Overview", hint: "Filter routes",
      make() {
        const needs = el("ul", { class: "needs" });
        const charts = [chart("Requests/s", "requests", "line-info"), chart("Refused/s", "denied", "line-deny"),
          chart("5xx/s", "errors", "line-warn"), chart("Limited/s", "limited", "line-warn")];
        const perRoute = (route) => {
          const before = history.length > 1 ? history[Math.max(0, history.length - 6)] : null;
          const last = history[history.length - 1];
          if (!before || !last || before === last || !before.routes) return 0;
          const was = sum((before.routes[route.name] || {}).requests);
          return Math.max(0, (sum(route.requests) - was) / ((last.at - before.at) / 1000));
        };
        const routes = table("Routes", [
          { name: "Route", sort: (r) => r.name, cell: (r) => ({ t: r.name, link: decisionsOf(`route:${quoted(r.name)}`) }) },
          { name: "Requests/s", c: "num", sort: perRoute, down: true, cell: (r) => rate(perRoute(r)) },
          { name: "Requests", c: "num", sort: (r) => sum(r.requests), down: true, cell: (r) => number(sum(r.requests)) },
          { name: "2xx", c: "num", sort: (r) => r.requests["2xx"] || 0, down: true, cell: (r) => number(r.requests["2xx"] || 0) },
          { name: "4xx", c: "num", sort: (r) => r.requests["4xx"] || 0, down: true, cell: (r) => number(r.requests["4xx"] || 0) },
          { name: "5xx", c: "num", sort: (r) => r.requests["5xx"] || 0, down: true,
            cell: (r) => ({ t: number(r.requests["5xx"] || 0), c: r.requests["5xx"] ? "bad" : "" }) },
          { name: "Refused, by code", cell: (r) => ({ chips: Object.entries(r.refusals).sort((a, b) => b[1] - a[1]).slice(0, 5)
            .map(([name, count]) => ({ t: `${name} ${number(count)}`, link: decisionsOf(`route:${quoted(r.name)} code:${quoted(name)}`) })) }) },
        ]);
        const empty = nothing("No request has come yet", "Send one through a listener. What comes of it is counted here, and each decision is in the section Decisions.");
        return {
          whole: el("div", { class: "stack" }, el("section", { "aria-label": "What needs somebody" }, needs),
            el("div", { class: "charts" }, charts.map((one) => one.whole)), empty, routes.whole),
          show(now) {
            const entries = [...now.reasons.map((one) => ["bad", one]), ...now.warnings.map((one) => ["warn", one])];
            if (!entries.length) entries.push(["good", "Nothing needs anybody: the gateway is ready and nothing warns."]);
            const sign = JSON.stringify(entries);
            if (needs.dataset.sign !== sign) {
              needs.dataset.sign = sign;
              needs.replaceChildren(...entries.map(([kind, what]) => el("li", { class: kind }, what)));
            }
            charts.forEach((one) => one.show());
            const all = Object.entries(now.routes).map(([name, counts]) => ({ name: name || "(no route)", ...counts }));
            const shown = all.filter((route) => holds(query(), route.name, Object.keys(route.refusals).join(" ")));
            shown.sort((a, b) => sum(b.requests) - sum(a.requests));
            empty.hidden = all.length > 0;
            routes.whole.hidden = all.length === 0;
            routes.show(shown.map((route) => ({ key: route.name, value: route })));
            count(shown.length, all.length, "route");
          },
        };
      },
      load: async (view) => { if (overviewNow) view.show(overviewNow); },
    },
    { name: "decisions", title: "Decisions", hint: "route:… caller:… code:… status:4xx policy:… or any words", own: true },
    {
      name: "limits", title: "Limits", hint: "Filter limits",
      make() {
        const seen = new Map();
        const limits = table("Limits", [
          { name: "Limit", sort: (l) => l.name, cell: (l) => ({ t: l.name, sub: l.builtin }) },
          { name: "Allows", cell: (l) => (l.rate ? `${l.rate}, ${l.burst || l.rate.split("/")[0]} at once` : "as the policy says") },
          { name: "Counted by", cell: (l) => (typeof l.by === "string" ? l.by : JSON.stringify(l.by)) },
          { name: "Turned away", c: "num", sort: (l) => l.turned_away, down: true,
            cell: (l) => ({ t: number(l.turned_away), c: l.turned_away ? "warn" : "" }) },
          { name: "In the last minute", c: "num", sort: (l) => l.lately, down: true,
            cell: (l) => ({ t: number(l.lately), c: l.lately ? "bad" : "" }) },
          { name: "Remembered", c: "wide", sort: (l) => l.keys || 0, down: true,
            cell: (l) => (l.max_keys ? { t: `${number(l.keys)} of ${number(l.max_keys)}`, bar: l.keys / l.max_keys,
              sub: l.overflows ? `${number(l.overflows)} counted in the shared bucket: raise max_keys` : "" } : "–") },
          { name: "Routes", cell: (l) => (l.routes ? { chips: l.routes.map((name) => ({ t: name, link: decisionsOf(`route:${quoted(name)}`) })) } : "all") },
        ]);
        const hits = el("p", {}, el("a", { href: decisionsOf("code:rate_limited") }, "Show the requests that were turned away"));
        const empty = nothing("No limits are configured", "Anybody may ask as often as they like, as long as the policy allows it. Name limits and list them on routes:",
          code("limits:", "  per-subject: { by: subject, rate: 10/s, burst: 40 }", "routes:", "  - name: orders", "    limits: [per-subject]"));
        return {
          whole: el("div", { class: "stack" }, hits, limits.whole, empty),
          show(now) {
            const time = performance.now();
            const all = now.limits.map((limit) => {
              const counts = (seen.get(limit.name) || []).filter((one) => time - one.time <= 60000 && one.count <= limit.turned_away);
              counts.push({ time, count: limit.turned_away });
              seen.set(limit.name, counts);
              const builtin = { authentication_failures: "of the gateway: refused credentials by address", policy: "asked for by policies" }[limit.name];
              return { ...limit, builtin, lately: limit.turned_away - counts[0].count };
            });
            const shown = all.filter((limit) => holds(query(), limit.name, limit.by, limit.routes));
            limits.show(shown.map((limit) => ({ key: limit.name, value: limit })));
            empty.hidden = all.some((limit) => !limit.builtin);
            count(shown.length, all.length, "limit");
          },
        };
      },
      load: async (view) => view.show(await ask("limits")),
    },
    {
      name: "upstreams", title: "Upstreams", hint: "Filter upstreams",
      make() {
        const state = (e) => {
          if (!e.resolved && !e.asked) return { t: "no address", badge: "deny", sub: "its name does not resolve" };
          if (!e.asked) return { t: "not asked yet", badge: "idle" };
          if (e.put_aside_by) return { t: "put aside", badge: "deny", sub: `by ${e.put_aside_by} of ${plural(e.workers, "worker")}, ${Math.ceil(e.put_aside_for_seconds)} s more` };
          if (e.failures) return { t: "failing", badge: "warn", sub: `${plural(e.failures, "failure")} in a row` };
          return { t: "answers", badge: "allow" };
        };
        const rows = table("Endpoints of upstreams", [
          { name: "Upstream", sort: (e) => e.upstream, cell: (e) => ({ t: e.upstream, sub: e.protocol }) },
          { name: "Endpoint", sort: (e) => e.endpoint, cell: (e) => ({ t: e.endpoint, sub: e.address && e.address !== e.endpoint ? e.address : "" }) },
          { name: "State", sort: (e) => state(e).t, cell: state },
          { name: "In flight", c: "num", sort: (e) => e.in_flight || 0, down: true, cell: (e) => number(e.in_flight) },
          { name: "Connections kept", c: "num", sort: (e) => e.idle || 0, down: true, cell: (e) => number(e.idle) },
          { name: "Attempts of the upstream", cell: (e) => ({ chips: Object.entries(e.attempts).sort((a, b) => b[1] - a[1])
            .map(([name, n]) => ({ t: `${name} ${number(n)}`, c: name === "answered" ? "good" : "bad" })).concat(e.retries ? [{ t: `sent again ${number(e.retries)}`, c: "warn" }] : []) }) },
          { name: "Routes", cell: (e) => ({ chips: e.routes.map((name) => ({ t: name, link: decisionsOf(`route:${quoted(name)}`) })) }) },
        ]);
        const missed = el("p", { class: "notice warn", hidden: true });
        const empty = nothing("No upstreams are configured", "Without one the gateway has nowhere to forward to:",
          code("upstreams:", "  orders: { endpoints: [\"http://127.0.0.1:9500\"] }"));
        return {
          whole: el("div", { class: "stack" }, missed, rows.whole, empty),
          show(now) {
            silent(missed, now);
            const all = Object.entries(now.upstreams).flatMap(([upstream, facts]) => facts.endpoints.map((endpoint) => ({
              ...endpoint, upstream, protocol: facts.protocol, attempts: facts.attempts, retries: facts.retries, routes: facts.routes,
              resolved: facts.usable === facts.all || endpoint.asked })));
            const shown = all.filter((e) => holds(query(), e.upstream, e.endpoint, e.address, e.routes, state(e).t));
            rows.show(shown.map((e) => ({ key: `${e.upstream} ${e.endpoint} ${e.address}`, value: e })));
            empty.hidden = all.length > 0;
            rows.whole.hidden = all.length === 0;
            count(shown.length, all.length, "endpoint");
          },
        };
      },
      load: async (view) => view.show(await ask("upstreams")),
    },
    {
      name: "keys", title: "Keys", hint: "Filter issuers and keys", every: 5000,
      make() {
        const issuers = table("Issuers", [
          { name: "Issuer", sort: (i) => i.name, cell: (i) => ({ t: i.name, sub: i.issuer }) },
          { name: "State", cell: (i) => {
            if (i.unread) return { t: "not believed", badge: "deny", sub: i.unread };
            if (!i.keys) return { t: "no keys", badge: "deny", sub: i.last_error || "none were fetched yet" };
            if (i.last_error) return { t: "stale", badge: "warn", sub: i.last_error };
            return { t: "fresh", badge: "allow" };
          } },
          { name: "Keys", c: "num", cell: (i) => number(i.keys) },
          { name: "From", cell: (i) => text(i.source) },
          { name: "Fetched", c: "num", cell: (i) => (typeof i.age_seconds === "number" ? `${span(i.age_seconds)} ago` : "–") },
          { name: "Believed for", c: "num", cell: (i) => span(i.believed_for_seconds) },
          { name: "Notes", cell: (i) => [...i.notes, i.file_error].filter(Boolean).join("; ") || "–" },
        ]);
        const keys = table("Keys", [
          { name: "Issuer", sort: (k) => k.issuer, cell: (k) => k.issuer },
          { name: "Key id", c: "mono", sort: (k) => text(k.kid), cell: (k) => k.kid || "–" },
          { name: "Thumbprint", c: "mono", cell: (k) => ({ t: short(k.thumbprint, 16) || "–", title: text(k.thumbprint) }) },
          { name: "Verifies", cell: (k) => (k.algorithms || []).join(", ") || "–" },
          { name: "State", sort: (k) => k.state, cell: (k) => ({ t: k.state, badge: { believed: "allow", leaving: "warn", distrusted: "deny" }[k.state] || "idle",
            sub: typeof k.leaves_in_seconds === "number" ? `for ${span(k.leaves_in_seconds)} more` : "" }) },
          { name: "First seen", cell: (k) => since(k.first_seen) },
        ]);
        const empty = nothing("No issuers are configured", "Callers are then known by certificates, or not at all. To believe somebody's tokens:",
          code("issuers:", "  main:", "    issuer: https://login.example.com", "    keys: { discovery: true }", "    audiences: [https://api.example.com]", "    algorithms: [ES256]"));
        const titles = [el("h2", {}, "Issuers"), el("h2", {}, "Their keys")];
        return {
          whole: el("div", { class: "stack" }, titles[0], issuers.whole, titles[1], keys.whole, empty),
          show(now) {
            const all = Object.entries(now.issuers).map(([name, issuer]) => ({ ...issuer, name }));
            const shown = all.filter((issuer) => holds(query(), issuer.name, issuer.issuer, issuer.published));
            const some = shown.flatMap((issuer) => issuer.published.map((key, nth) => ({ ...key, issuer: issuer.name, nth })))
              .filter((key) => holds(query(), key) || holds(query(), key.issuer));
            issuers.show(shown.map((issuer) => ({ key: issuer.name, value: issuer })));
            keys.show(some.map((key) => ({ key: `${key.issuer} ${key.kid} ${key.thumbprint} ${key.nth}`, value: key })));
            for (const one of [...titles, issuers.whole, keys.whole]) one.hidden = all.length === 0;
            empty.hidden = all.length > 0;
            count(shown.length, all.length, "issuer");
          },
        };
      },
      load: async (view) => view.show(await ask("keys")),
    },
    {
      name: "candidates", title: "Candidates", hint: "Filter candidates and flips", every: 3000,
      make: () => candidates(),
      load: async (view) => view.show(await ask("candidates")),
    },
    {
      name: "streams", title: "Streams", hint: "Filter by route, caller, path, address",
      make() {
        const streams = table("Open streams", [
          { name: "Route", sort: (s) => text(s.route), cell: (s) => (s.route ? { t: s.route, link: decisionsOf(`route:${quoted(s.route)}`) } : "(no answer yet)") },
          { name: "Kind", sort: (s) => s.kind, cell: (s) => s.kind },
          { name: "Request", c: "mono", cell: (s) => ({ t: `${s.method} ${s.path}`, title: s.request_id }) },
          { name: "Caller", sort: (s) => (s.caller ? s.caller.subject : ""), cell: (s) => (s.caller
            ? { t: s.caller.subject, link: decisionsOf(`caller:${quoted(s.caller.subject)}`), sub: [s.caller.client, s.caller.issuer].filter(Boolean).join(" · ") }
            : { t: "anonymous", sub: s.client }) },
          { name: "Age", c: "num", sort: (s) => s.age_seconds, down: true, cell: (s) => span(s.age_seconds) },
          { name: "In", c: "num", sort: (s) => s.bytes_in, down: true, cell: (s) => bytes(s.bytes_in) },
          { name: "Out", c: "num", sort: (s) => s.bytes_out, down: true, cell: (s) => bytes(s.bytes_out) },
          { name: "Judged again in", c: "num", sort: (s) => s.ends_in_seconds ?? 1e12, cell: (s) => {
            if (s.ending) return { t: "ending", badge: "warn", sub: s.ending };
            return s.ends_in_seconds === null ? { t: "on a change", title: "Its permission names no end; a revocation, a reload or a policy that says no ends it." }
              : { t: span(s.ends_in_seconds), title: since(s.until) };
          } },
        ]);
        const routes = el("p", { class: "chips" });
        const missed = el("p", { class: "notice warn", hidden: true });
        const empty = nothing("No stream is open", "WebSockets, event streams, gRPC calls, tunnels and long answers are here while they last, with the end of their permission.",
          "Try one: the route `live` of the running example streams events.", code("portcullis dev"));
        return {
          whole: el("div", { class: "stack" }, missed, routes, streams.whole, empty),
          show(now) {
            silent(missed, now);
            const shown = now.streams.filter((s) => holds(query(), s));
            streams.show(shown.map((s) => ({ key: s.request_id, value: s })));
            routes.replaceChildren(...now.by_route.slice(0, 12).map((one) => el("span", { class: "chip" }, `${one.route || "(no answer yet)"} ${number(one.open)}`)));
            empty.hidden = now.open > 0;
            streams.whole.hidden = now.open === 0;
            const left = now.open - now.streams.length;
            count(shown.length, now.open, "stream", left > 0 ? `the ${number(now.streams.length)} oldest are shown` : "");
          },
        };
      },
      load: async (view) => view.show(await ask("streams")),
    },
    {
      name: "policies", title: "Policies", hint: "Filter policies, rules and bundles", every: 3000,
      make() {
        const policies = table("Policies", [
          { name: "Policy", sort: (p) => p.name, cell: (p) => ({ t: p.name, link: decisionsOf(`policy:${quoted(p.name)}`) }) },
          { name: "Revision", c: "mono", cell: (p) => p.revision },
          { name: "Engine", cell: (p) => ({ t: p.engine, title: { fast: "compiled", interpreter: "interpreted" }[p.engine] }) },
          { name: "Watched", c: "num", cell: (p) => ({ t: number(p.watched), title: `one evaluation in ${p.watched_one_in} is timed` }) },
        ]);
        const rules = table("Costliest rules", [
          { name: "Rule", c: "mono", sort: (r) => r.rule, cell: (r) => ({ t: r.rule, sub: r.at }) },
          { name: "Policy", sort: (r) => r.policy, cell: (r) => r.policy },
          { name: "Share of the time", c: "wide", sort: (r) => r.share, down: true, cell: (r) => ({ t: `${(r.share * 100).toFixed(1)} %`, bar: r.share }) },
          { name: "Per evaluation", c: "num", sort: (r) => r.seconds / r.evaluations, down: true, cell: (r) => millis((r.seconds / r.evaluations) * 1000) },
          { name: "Evaluations", c: "num", sort: (r) => r.evaluations, down: true, cell: (r) => number(r.evaluations) },
          { name: "Budget spent", c: "num", sort: (r) => r.budget_overruns, down: true, cell: (r) => ({ t: number(r.budget_overruns), c: r.budget_overruns ? "bad" : "" }) },
        ]);
        const bundles = table("Bundles", [
          { name: "Bundle", sort: (b) => b.name, cell: (b) => ({ t: b.name, sub: b.url || b.source }) },
          { name: "State", cell: (b) => (b.last_error ? { t: b.active ? "old" : "missing", badge: b.active ? "warn" : "deny", sub: text(b.last_error.message || b.last_error.text || b.last_error.reason) }
            : { t: b.active ? "in force" : "missing", badge: b.active ? "allow" : "deny" }) },
          { name: "Revision", c: "mono", cell: (b) => ({ t: short(b.revision || b.digest, 24) || "–", title: text(b.revision || b.digest) }) },
          { name: "Signed", cell: (b) => (b.signed ? "yes" : "no") },
          { name: "In force since", cell: (b) => since(b.active_since) },
          { name: "Last success", cell: (b) => since(b.last_success) },
          { name: "Policies", cell: (b) => (b.policies || []).join(", ") || "none" },
        ]);
        const empty = nothing("No policies are configured", "Every route names one, or says `public`.",
          code("policies:", "  orders: { files: [policies/], entrypoint: data.orders.decision }"));
        const noRules = el("p", { class: "faint" }, "No evaluation was watched yet: one in 64 is timed, and what was answered from the cache is none.");
        const noBundles = el("p", { class: "faint" }, "No bundles: policies and data are read from files beside the configuration.");
        return {
          whole: el("div", { class: "stack" }, policies.whole, empty, el("h2", {}, "Costliest rules"), noRules, rules.whole, el("h2", {}, "Bundles"), noBundles, bundles.whole),
          show(now) {
            const all = Object.entries(now.policies).map(([name, policy]) => ({ ...policy, name }));
            const shown = all.filter((policy) => holds(query(), policy));
            const some = all.flatMap((policy) => policy.rules.map((rule) => ({ ...rule, policy: policy.name }))).filter((rule) => holds(query(), rule));
            some.sort((a, b) => b.seconds - a.seconds);
            const kept = Object.entries(now.bundles).map(([name, bundle]) => ({ ...bundle, name }));
            policies.show(shown.map((policy) => ({ key: policy.name, value: policy })));
            rules.show(some.map((rule) => ({ key: `${rule.policy} ${rule.rule} ${rule.at}`, value: rule })));
            bundles.show(kept.filter((bundle) => holds(query(), bundle)).map((bundle) => ({ key: bundle.name, value: bundle })));
            empty.hidden = all.length > 0;
            policies.whole.hidden = all.length === 0;
            noRules.hidden = some.length > 0;
            rules.whole.hidden = some.length === 0;
            noBundles.hidden = kept.length > 0;
            bundles.whole.hidden = kept.length === 0;
            count(shown.length, all.length, "policy", "", "policies");
          },
        };
      },
      load: async (view) => {
        const [policies, bundles] = await Promise.all([ask("policies"), ask("bundles")]);
        view.show({ policies: policies.policies, bundles: bundles.bundles });
      },
    },
    {
      name: "configuration", title: "Configuration", hint: "Find in the configuration", every: 5000,
      make() {
        const listing = el("div", { class: "listing", role: "region", "aria-label": "The configuration in force", tabindex: "0" });
        const note = el("p", { class: "faint" }, "In force now, with defaults filled in. Secrets are references, never values.");
        let known = null;
        let sought = null;
        return {
          whole: el("div", { class: "stack" }, note, listing),
          show(yaml) {
            const lines = yaml.trimEnd().split("\n");
            if (known !== yaml) {
              known = yaml;
              sought = null;
              listing.replaceChildren(...lines.map((content, index) => el("div", { class: "row" }, el("span", { class: "nr", "aria-hidden": "true" }, String(index + 1)),
                el("code", {}, content || " "))));
            }
            const hits = lines.map((content) => query() !== "" && holds(query(), content));
            [...listing.children].forEach((row, index) => row.classList.toggle("hit", hits[index]));
            const found_ = hits.filter(Boolean).length;
            if (sought !== query()) {
              sought = query();
              const first = listing.querySelector(".hit");
              if (first) first.scrollIntoView({ block: "center" });
            }
            count(query() ? found_ : lines.length, lines.length, "line");
          },
        };
      },
      load: async (view) => view.show(await ask("config", { plain: true })),
    },
  ];

  function silent(place, now) {
    place.hidden = now.answered >= now.workers;
    place.textContent = `${now.workers - now.answered} of ${plural(now.workers, "worker")} did not answer within a second: their part is missing.`;
  }

  function candidates() {
    const standings = { shadow: { t: "beside", badge: "idle" }, enforcing: { t: "decides", badge: "warn" }, back: { t: "went back", badge: "deny" }, waiting: { t: "waits", badge: "warn" } };
    const flipNames = { denies: "would deny", permits: "would allow", terms: "other terms", other: "others" };
    const flipBadges = { denies: "deny", permits: "allow", terms: "warn" };
    const enforce = (c) => {
      if (!c.enforce) return "";
      const parts = [c.enforce.share && `${c.enforce.share} by ${c.enforce.by}`, c.enforce.cohort && "of a cohort"].filter(Boolean);
      return parts.join(" ") || "a cohort";
    };
    const some = (c, name) => ({ t: number(c[name]), c: c[name] ? "bad" : "", sub: c.compared ? `${((c[name] / c.compared) * 100).toFixed(2)} %` : "" });
    const rows = table("Candidates", [
      { name: "Candidate", sort: (c) => c.name, cell: (c) => ({ t: c.name, sub: `for ${c.of}, revision ${c.revision}` }) },
      { name: "Standing", sort: (c) => c.standing, cell: (c) => ({ ...(standings[c.standing] || { t: c.standing, badge: "idle" }),
        sub: c.back ? `${text(c.back.why || c.back.edge)}, since ${at(c.back.since)}` : c.judged && c.judged.held ? c.judged.held : enforce(c) }) },
      { name: "Compared", c: "num", sort: (c) => c.compared, down: true, cell: (c) => ({ t: number(c.compared), sub: c.sample ? `of ${c.sample} sampled` : "" }) },
      { name: "Would deny", c: "num", sort: (c) => c.denies, down: true, cell: (c) => some(c, "denies") },
      { name: "Would allow", c: "num", sort: (c) => c.permits, down: true, cell: (c) => some(c, "permits") },
      { name: "Other terms", c: "num", sort: (c) => c.terms, down: true, cell: (c) => number(c.terms) },
      { name: "Failed", c: "num", sort: (c) => c.failed, down: true, cell: (c) => ({ t: number(c.failed), c: c.failed ? "bad" : "" }) },
      { name: "Left out", c: "num", sort: (c) => c.left_out, down: true, cell: (c) => ({ t: number(c.left_out), title: "requests that were not compared: no time, a full queue, or a change" }) },
    ]);
    const boxes = new Map();
    const flips = el("div", { class: "stack" });
    const empty = nothing("Nothing is tried beside the policies", "A candidate is asked about live requests behind the answer, and what it would have decided otherwise is shown here. Add one and reload:",
      code("candidates:", "  orders-next: { of: orders, files: [policies-next/] }"));

    function boxOf(name) {
      const routes = table(`Flips of ${name} by route`, [
        { name: "Route", sort: (r) => r.route, cell: (r) => ({ t: r.route, link: decisionsOf(`route:${quoted(r.route)}`) }) },
        { name: "Compared", c: "num", sort: (r) => r.compared, down: true, cell: (r) => number(r.compared) },
        { name: "Would deny", c: "num", sort: (r) => r.denies, down: true, cell: (r) => ({ t: number(r.denies), c: r.denies ? "bad" : "" }) },
        { name: "Would allow", c: "num", sort: (r) => r.permits, down: true, cell: (r) => ({ t: number(r.permits), c: r.permits ? "bad" : "" }) },
        { name: "Other terms", c: "num", sort: (r) => r.terms, down: true, cell: (r) => number(r.terms) },
      ]);
      const reasons = table(`Flips of ${name} by reason`, [
        { name: "Flip", cell: (r) => ({ t: flipNames[r.flip] || r.flip, badge: flipBadges[r.flip] || "idle" }) },
        { name: "The policy says", cell: (r) => text(r.from) || "–" },
        { name: "The candidate says", cell: (r) => text(r.to) || "–" },
        { name: "Count", c: "num", sort: (r) => r.count, down: true, cell: (r) => number(r.count) },
      ]);
      const rules = table(`Examples of flips of ${name} by rule`, [
        { name: "Flip", cell: (r) => ({ t: flipNames[r.flip] || r.flip, badge: flipBadges[r.flip] || "idle" }) },
        { name: "Rule of the candidate", c: "mono", cell: (r) => ({ t: text(r.rule) || "not to be told", sub: text(r.at) }) },
        { name: "Examples", c: "num", sort: (r) => r.samples, down: true, cell: (r) => number(r.samples) },
      ]);
      const callers = table(`Flips of ${name} by caller`, [
        { name: "Caller", sort: (c) => c.caller, cell: (c) => c.caller },
        { name: "Flips", c: "num", sort: (c) => c.flips, down: true, cell: (c) => ({ t: number(c.flips), sub: c.in_doubt ? `at most ${number(c.in_doubt)} too many` : "" }) },
      ]);
      const samples = table(`Examples of flips of ${name}`, [
        { name: "Time", cell: (s) => at(s.time) },
        { name: "Flip", cell: (s) => ({ t: flipNames[s.flip] || s.flip, badge: flipBadges[s.flip] || "idle", sub: s.decided ? "the candidate decided" : "" }) },
        { name: "Request", c: "mono", cell: (s) => ({ t: `${s.method} ${s.path}`, link: `#/decisions?id=${encodeURIComponent(s.decision_id)}` }) },
        { name: "Route", cell: (s) => s.route },
        { name: "Caller", cell: (s) => s.caller },
        { name: "The policy says", cell: (s) => text(s.from) },
        { name: "The candidate says", cell: (s) => ({ t: text(s.to), sub: (s.terms || []).join(", ") }) },
      ]);
      const none = el("p", { class: "faint" }, "Nothing would flip so far.");
      const parts = [el("h3", {}, "By route"), routes.whole, el("h3", {}, "By reason"), reasons.whole, el("h3", {}, "By rule, of the examples"), rules.whole, el("h3", {}, "By caller"), callers.whole, el("h3", {}, "Examples"), samples.whole];
      const box = el("details", { class: "box", ontoggle: () => { if (box.open) look(name); } }, el("summary", {}, `Flips of ${name}`), el("div", { class: "stack" }, none, parts));
      return {
        box,
        show(facts) {
          const any = facts.denies + facts.permits + facts.terms > 0;
          none.hidden = any;
          for (const part of parts) part.hidden = !any;
          routes.show(facts.routes.map((one) => ({ key: one.route, value: one })));
          reasons.show(facts.reasons.map((one) => ({ key: `${one.flip} ${one.from} ${one.to}`, value: one })));
          rules.show((facts.rules || []).map((one) => ({ key: `${one.flip} ${one.rule} ${one.at}`, value: one })));
          callers.show(facts.callers.map((one) => ({ key: one.caller, value: one })));
          samples.show(facts.samples.map((one) => ({ key: one.decision_id, value: one })));
        },
      };
    }

    async function look(name) {
      const kept = boxes.get(name);
      if (!kept) return;
      try { kept.show(await ask(`candidates/${encodeURIComponent(name)}`)); } catch (error) { if (!(error instanceof Trouble)) throw error; }
    }

    return {
      whole: el("div", { class: "stack" }, rows.whole, flips, empty),
      show(now) {
        const all = now.candidates;
        const shown = all.filter((one) => holds(query(), one));
        rows.show(shown.map((one) => ({ key: one.name, value: one })));
        const names = new Set(shown.map((one) => one.name));
        for (const [name, kept] of boxes) if (!names.has(name)) { kept.box.remove(); boxes.delete(name); }
        for (const name of names) {
          if (!boxes.has(name)) {
            const kept = boxOf(name);
            boxes.set(name, kept);
            flips.append(kept.box);
            if (all.length === 1) kept.box.open = true;
          } else if (boxes.get(name).box.open) look(name);
        }
        empty.hidden = all.length > 0;
        rows.whole.hidden = all.length === 0;
        count(shown.length, all.length, "candidate");
      },
    };
  }

  /** JSON as a text that can be folded. */
  function tree(value) {
    return el("pre", { class: "json", tabindex: "0" }, JSON.stringify(value, null, 2));
  }

  // --- Decisions ----------------------------------------------------------------------------------

  const FIELDS = ["route", "caller", "decision", "code", "status", "policy"];

  /** `route:a caller:"b c" words` as what the gateway is asked, and words to look for here. */
  function parsed(q) {
    const asked = {};
    const words = [];
    for (const [, field, inQuotes, plain, quotedWord, word] of q.matchAll(/(\w+):(?:"([^"]*)"?|(\S*))|"([^"]*)"?|(\S+)/g)) {
      if (field && FIELDS.includes(field)) { if (inQuotes || plain) asked[field] = inQuotes || plain; }
      else words.push((field ? `${field}:${inQuotes ?? plain ?? ""}` : quotedWord ?? word).toLowerCase());
    }
    return { asked, words: words.filter(Boolean) };
  }

  /** The query with another value of a field, or without it. */
  function withField(q, field, value) {
    const rest = q.replace(new RegExp(`(^|\\s)${field}:("[^"]*"?|\\S*)`, "g"), " ").replace(/\s+/g, " ").trim();
    return value ? `${rest} ${field}:${quoted(value)}`.trim() : rest;
  }

  /** What became of it, in a word. */
  function verdict(r) {
    if (r.decision === "deny") return { t: "denied", c: "deny" };
    if (r.refusal && r.status === 429) return { t: "limited", c: "warn" };
    if (r.refusal && (r.status >= 500 || r.status === null)) return { t: "failed", c: "warn" };
    if (r.refusal) return { t: "refused", c: "deny" };
    if (r.decision === "allow") return { t: "allowed", c: "allow" };
    return { t: "answered", c: "idle" };
  }

  const callerName = (r) => {
    if (!r.caller) return "";
    return r.caller.subject || r.caller.client || r.caller.method || "";
  };

  const decisions = (() => {
    let turn = 0;
    let abort = null;
    let instance = null;
    let next = null;
    let newest = 0;
    let waitless = false;
    let fresh = true;
    let filters = { asked: {}, words: [] };
    let asQuery = null;
    let entries = [];
    let pending = [];
    let paused = false;
    let hover = false;
    let selected = null;
    let opened = null;
    let openedKey = null;
    let looking = 0;

    const kinds = [["", "All"], ["allow", "Allowed"], ["deny", "Denied"], ["none", "Not decided"]];
    const segments = el("div", { class: "segments", role: "group", "aria-label": "Which decisions" },
      kinds.map(([value, name]) => el("button", { type: "button", "data-value": value,
        title: value === "none" ? "refused before a policy was asked, or answered without one" : null,
        onclick: () => go(withField(query(), "decision", value), null) }, name)));
    const hold = el("button", { type: "button", class: "quiet", id: "hold", "aria-pressed": "false", onclick: () => { paused = !paused; settle(); } }, "Hold");
    const news = el("button", { type: "button", class: "news", onclick: () => { paused = false; list.scrollTop = 0; hover = false; flush(true); settle(); } });
    const list = el("div", { class: "list", role: "listbox", tabindex: "0", id: "decisions", "aria-label": "Decisions, the newest first" });
    const head = el("div", { class: "row head", "aria-hidden": "true" },
      ["Time", "", "Status", "Request", "Route", "Caller", "Reason", "Took"].map((name) => el("span", {}, name)));
    const empty = el("div", { class: "empty" });
    const side = el("aside", { class: "detail", "aria-label": "The decision", tabindex: "-1", hidden: true });
    const whole = el("div", { class: "split" }, el("div", { class: "left" }, el("div", { class: "strip" }, segments, hold, news), head, list, empty), side);

    list.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") { hover = true; settle(); } });
    list.addEventListener("pointerleave", () => { hover = false; flush(false); settle(); });
    list.addEventListener("scroll", () => { flush(false); settle(); });
    list.addEventListener("blur", () => { flush(false); settle(); });
    list.addEventListener("focus", () => { if (!selected && visible().length) mark(visible()[0], false); });
    list.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      const entry = row && entries.find((one) => one.row === row);
      if (entry) { mark(entry, false); show(entry); }
    });

    const visible = () => entries.filter((entry) => !entry.row.hidden && entry.record);
    const held = () => paused || hover || !side.hidden || list.scrollTop > 4 || document.activeElement === list;

    function go(q, id) {
      const asked = new URLSearchParams();
      if (q) asked.set("q", q);
      if (id) asked.set("id", id);
      const search = asked.toString();
      location.hash = `#/decisions${search ? `?${search}` : ""}`;
    }

    function entryOf({ seq, record }) {
      const kind = verdict(record);
      const key = `${instance.slice(0, 6)}-${seq}`;
      const query_ = record.query ? `?${record.query}` : "";
      const row = el("div", { class: `row ${kind.c}`, role: "option", id: `d-${key}`, "aria-selected": "false" },
        el("span", { class: "time" }, at(record.time)),
        el("span", {}, el("span", { class: `badge ${kind.c}` }, kind.t)),
        el("span", { class: "status" }, text(record.status ?? "–")),
        el("span", { class: "request", title: `${text(record.method)} ${text(record.path)}${query_}` }, el("b", {}, text(record.method)), ` ${text(record.path)}`),
        el("span", { class: "route" }, text(record.route) || "–"),
        el("span", { class: "caller" }, callerName(record) || "–"),
        el("span", { class: "reason" }, text(record.reason || (record.refusal && record.refusal.code))),
        el("span", { class: "took" }, millis(record.duration_ms && record.duration_ms.total)));
      const haystack = [record.time, record.method, record.host, record.path, record.query, record.route, record.reason, record.status, record.client, record.user_agent,
        record.request_id, record.decision_id, record.trace_id, record.upstream, record.endpoint, record.caller, record.policy, record.refusal, kind.t];
      const hay = haystack.map((one) => (one && typeof one === "object" ? JSON.stringify(one) : text(one))).join("\n").toLowerCase();
      return { seq, key, record, row, hay };
    }

    const note = (message) => ({ seq: -1, key: message, record: null, hay: "", row: el("div", { class: "row gap", role: "presentation" }, message) });

    const fits = (entry) => filters.words.every((word) => entry.hay.includes(word));

    function take(answer) {
      const notes = [];
      if (instance !== null && answer.instance !== instance) {
        notes.push(note(`The gateway was started anew, as seen at ${clock(new Date())}`));
        newest = 0;
      }
      instance = answer.instance;
      next = answer.next;
      const came = answer.decisions.filter((one) => one.seq > newest).sort((a, b) => a.seq - b.seq);
      if (answer.missed > 0) notes.push(note(`${plural(answer.missed, "decision")} came and went faster than they could be shown`));
      if (came.length) newest = came[came.length - 1].seq;
      pending.push(...notes, ...came.map(entryOf));
      if (pending.length > MAX_ROWS) pending = pending.slice(-MAX_ROWS);
      flush(false);
      settle();
    }

    /** Puts what came on top of the list; not while somebody reads, for the list would move. */
    function flush(now) {
      if (!pending.length || (!now && held() && entries.length)) return;
      const block = document.createDocumentFragment();
      for (const entry of pending) {
        entry.row.hidden = entry.record !== null && !fits(entry);
        block.prepend(entry.row);
      }
      entries = [...pending.reverse(), ...entries];
      pending = [];
      const top = list.scrollTop;
      list.prepend(block);
      if (now) list.scrollTop = 0; else list.scrollTop = top;
      for (const gone of entries.splice(MAX_ROWS)) {
        gone.row.remove();
        if (gone === selected) { selected = null; list.removeAttribute("aria-activedescendant"); }
      }
    }

    function settle() {
      const wants = pending.filter((entry) => entry.record && fits(entry)).length;
      news.textContent = wants ? `Show ${plural(wants, "new one", "new ones")}` : "";
      news.classList.toggle("none", !wants);
      news.disabled = !wants;
      hold.setAttribute("aria-pressed", String(paused));
      hold.textContent = paused ? "Held" : "Hold";
      const shown = visible().length;
      const all = entries.filter((entry) => entry.record).length;
      const any = Object.keys(filters.asked).length || filters.words.length;
      empty.hidden = shown > 0 || next === null;
      list.classList.toggle("bare", shown === 0);
      if (!empty.hidden) hint(any);
      count(shown, all, "decision");
    }

    let hinted = "";
    async function hint(filtered) {
      const kind = filtered ? `f${JSON.stringify(filters)}` : "none";
      if (hinted === kind && empty.childElementCount) return;
      hinted = kind;
      if (filtered) {
        empty.replaceChildren(nothing("No decision is as asked for", "Words may stand anywhere; what follows a colon has to be the whole value, as in route:read-order or status:4xx. New decisions that fit appear by themselves.",
          el("button", { type: "button", class: "quiet", onclick: () => { $("filter").value = ""; go("", null); } }, "Clear the filter")));
        return;
      }
      empty.replaceChildren(nothing("No decision was made yet", "Each request through a listener leaves one. Send one:"));
      try {
        const status = await ask("status");
        const lines = Object.values(status.listeners).map((one) => `curl -i http://${one.address}/`);
        if (hinted === "none" && lines.length) empty.firstChild.append(code(...lines));
      } catch { /* The words alone will do. */ }
    }

    async function run(mine) {
      const pause = (time) => new Promise((done) => { setTimeout(done, time); });
      while (mine === turn) {
        if (document.hidden || !line.up) { fresh = true; await pause(300); continue; }
        try {
          const asked = new URLSearchParams(filters.asked);
          asked.set("limit", String(BATCH));
          if (next !== null) {
            asked.set("after", String(next));
            if (!waitless && !fresh) asked.set("wait", "20");
          }
          const answer = await ask(`decisions?${asked}`, { signal: abort.signal });
          if (mine !== turn) return;
          fresh = false;
          problem("");
          if (instance !== null && answer.instance !== instance && next !== null) {
            // Numbers begin anew with the process: ask for its last ones.
            next = null;
            take({ ...answer, next: null, decisions: [], missed: 0 });
            continue;
          }
          const behind = next !== null && answer.decisions.length >= BATCH;
          take(answer);
          if (behind) { next = null; pending.push(note("More decisions came than are shown")); }
        } catch (error) {
          if (mine !== turn || error.name === "AbortError") return;
          if (!(error instanceof Trouble)) throw error;
          fresh = true;
          if (error.status === 503) { waitless = true; await pause(2000); continue; }
          if (error.status && error.status !== 401) problem(error.message);
          await pause(1500);
          continue;
        }
        await pause(waitless ? 2000 : 400);
      }
    }

    function restart() {
      turn += 1;
      if (abort) abort.abort();
      abort = new AbortController();
      entries = []; pending = []; selected = null;
      next = null; newest = 0; instance = null; waitless = false; fresh = true; hinted = "";
      list.replaceChildren();
      list.removeAttribute("aria-activedescendant");
      empty.hidden = true;
      run(turn);
    }

    function mark(entry, scroll = true) {
      if (selected) selected.row.setAttribute("aria-selected", "false");
      selected = entry;
      entry.row.setAttribute("aria-selected", "true");
      list.setAttribute("aria-activedescendant", entry.row.id);
      if (scroll) entry.row.scrollIntoView({ block: "nearest" });
    }

    function step(by) {
      const shown = visible();
      if (!shown.length) return;
      const here = selected ? shown.indexOf(selected) : -1;
      const there = here < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, here + by));
      mark(shown[there]);
      if (!side.hidden) {
        clearTimeout(looking);
        looking = setTimeout(() => { if (selected && !side.hidden) show(selected); }, 120);
      }
    }

    const show = (entry) => go(query(), entry.record.decision_id || entry.record.request_id);

    async function open(id) {
      opened = id;
      const entry = entries.find((one) => one.record && (one.record.decision_id === id || one.record.request_id === id));
      openedKey = entry ? entry.key : null;
      side.hidden = false;
      whole.classList.add("open");
      if (entry) draw(entry.record, null, true);
      else side.replaceChildren(frame("…"), el("p", { class: "faint" }, "Looking for it"));
      side.scrollTop = 0;
      try {
        const answer = await ask(`decisions/${encodeURIComponent(id)}`);
        if (opened === id) draw(answer.record, answer.why ?? answer.record.why ?? null, false, answer.why_not);
      } catch (error) {
        if (opened !== id) return;
        if (entry) draw(entry.record, entry.record.why ?? null, false, error.message);
        else side.replaceChildren(frame("It is not there"), el("p", { class: "notice warn" }, `${error.message}.`));
      }
    }

    function frame(title) {
      return el("header", { class: "detail-head" }, el("h2", { tabindex: "-1" }, title),
        el("button", { type: "button", class: "quiet close", "aria-label": "Close the decision", onclick: () => close() }, "Close"));
    }

    function close() {
      if (side.hidden) return false;
      const inside = side.contains(document.activeElement);
      opened = null;
      side.hidden = true;
      whole.classList.remove("open");
      side.replaceChildren();
      go(query(), null);
      flush(false);
      settle();
      if (inside) list.focus();
      return true;
    }

    function draw(record, why, waiting, trouble) {
      const kind = verdict(record);
      const focused = side.contains(document.activeElement);
      const top = side.scrollTop;
      side.replaceChildren(frame(`${text(record.method)} ${short(record.path, 120)}`),
        el("p", { class: "told" }, el("span", { class: `badge ${kind.c}` }, kind.t), " ", story(record)),
        whyOf(record, why, waiting, trouble), ...factsOf(record));
      side.scrollTop = top;
      if (focused) side.querySelector("h2").focus({ preventScroll: true });
    }

    return {
      whole,
      open() { asQuery = null; },
      close() { turn += 1; if (abort) abort.abort(); side.hidden = true; whole.classList.remove("open"); opened = null; },
      forget() { turn += 1; if (abort) abort.abort(); entries = []; pending = []; list.replaceChildren(); side.replaceChildren(); side.hidden = true; opened = null; selected = null; },
      follow(q, id) {
        if ($("filter").value !== q && !(document.activeElement === $("filter") && q === $("filter").value.trim())) $("filter").value = q;
        filters = parsed(q);
        for (const button of segments.children) button.setAttribute("aria-pressed", String(button.dataset.value === (filters.asked.decision || "")));
        const sign = JSON.stringify(filters.asked);
        if (asQuery !== sign) { asQuery = sign; restart(); }
        else {
          for (const entry of entries) entry.row.hidden = entry.record !== null && !fits(entry);
          settle();
        }
        if (id && id !== opened) open(id);
        else if (!id && !side.hidden) { opened = null; side.hidden = true; whole.classList.remove("open"); side.replaceChildren(); }
      },
      enter() { list.focus(); if (visible().length) mark(visible()[0]); },
      escape: () => {
        if (close()) { list.focus(); return true; }
        return false;
      },
      key(event) {
        const inDetail = side.contains(event.target) && event.target !== side;
        if (inDetail && event.target.closest("pre, summary, a, button")) return false;
        if (event.target.closest("button, a")) return event.key === "p" && (hold.click(), true);
        if (event.key === "ArrowDown" || event.key === "j") { if (inDetail) return false; list.focus(); step(1); return true; }
        if (event.key === "ArrowUp" || event.key === "k") { if (inDetail) return false; list.focus(); step(-1); return true; }
        if (event.key === "Home" && event.target === list) { step(-Infinity); return true; }
        if (event.key === "End" && event.target === list) { step(Infinity); return true; }
        if (event.key === "PageDown" && event.target === list) { step(10); return true; }
        if (event.key === "PageUp" && event.target === list) { step(-10); return true; }
        if (event.key === "Enter" && selected) {
          const id = selected.record.decision_id || selected.record.request_id;
          if (opened === id) side.querySelector("h2").focus(); else show(selected);
          return true;
        }
        if (event.key === "p") { paused = !paused; flush(false); settle(); return true; }
        return false;
      },
    };

    /** What happened, in a few sentences. */
    function story(r) {
      const parts = [];
      const bold = (value) => el("b", {}, text(value));
      const client = r.caller && r.caller.client && r.caller.client !== r.caller.subject ? [" through ", bold(r.caller.client)] : [];
      if (r.caller && r.caller.subject) parts.push(bold(r.caller.subject), ...client);
      else parts.push(r.caller ? "Somebody anonymous" : "Somebody unknown");
      parts.push(r.client ? ` at ${r.client}` : "", " asked for ", el("code", {}, `${text(r.method)} ${short(r.path, 200)}`));
      if (r.route) parts.push(" on the route ", bold(r.route));
      parts.push(". ");
      const policy = r.policy && r.policy.name;
      const candidate_ = r.policy && r.policy.candidate ? [", the candidate ", bold(r.policy.candidate), ","] : [];
      if (r.decision === "deny") parts.push("The policy ", bold(policy || "of the route"), ...candidate_, " said no", r.reason ? [": ", bold(r.reason)] : "", ". ");
      else if (r.decision === "allow") parts.push("The policy ", bold(policy || "of the route"), ...candidate_, " allowed it. ");
      if (r.refusal && r.decision === "allow") parts.push("Then it was turned away: ", bold(r.reason || r.refusal.code), ". ");
      else if (r.refusal && r.decision !== "deny") parts.push("It was refused before a policy was asked: ", bold(r.reason || r.refusal.code), ". ");
      if (r.status === null || r.status === undefined) parts.push("No answer was sent.");
      else parts.push("The answer was ", bold(r.status), r.upstream && !r.refusal ? [" from ", bold(r.upstream)] : "", r.duration_ms ? ` after ${millis(r.duration_ms.head ?? r.duration_ms.total)}` : "", ".");
      return el("span", {}, parts.flat());
    }
  })();

  // --- One decision -------------------------------------------------------------------------------

  /** Where something stands: the end of its path, and all of it for whoever points at it. */
  function place(one, more = "") {
    const whole = one.at ? text(one.at) : `${text(one.file)}:${text(one.line)}${one.column ? `:${one.column}` : ""}`;
    const parts = whole.split("/");
    return el("small", { title: whole }, `${parts.length > 2 ? `…/${parts.slice(-2).join("/")}` : whole}${more}`);
  }

  function whyOf(record, why, waiting, trouble) {
    const box = el("section", { class: "why", "aria-label": "Why" }, el("h3", {}, "Why"));
    if (!why) {
      const said = record.refusal && record.refusal.detail;
      if (said) box.append(el("p", {}, said));
      else if (waiting) box.append(el("p", { class: "faint" }, "Asking the policy again"));
      else if (record.decision === null) box.append(el("p", { class: "faint" }, "No policy was asked."));
      if (!waiting && record.decision !== null) {
        box.append(el("p", { class: "faint" }, trouble ? `Why the policy answered so cannot be told: ${trouble}.`
          : "Why the policy answered so is not told here. In a terminal:"));
        if (!trouble) box.append(code(`portcullis explain ${text(record.decision_id || record.request_id)}`));
      }
      return box;
    }
    if (why.error || typeof why === "string") { box.append(el("p", { class: "notice warn" }, text(why.error || why))); return box; }
    const detail = record.refusal && record.refusal.detail;
    if (detail && detail !== `denied: ${record.reason}`) box.append(el("p", {}, detail));
    const ways = why.ways || [why.failed].flat().filter(Boolean);
    if (ways.length) {
      box.append(el("p", {}, ways.length === 1 ? "This would have been the way to yes:" : "These would have been ways to yes, the one that came nearest first:"));
      box.append(el("ol", { class: "ways" }, ways.map((way) => el("li", {}, wayOf(way)))));
    }
    const rules = why.rules || [];
    if (rules.length) {
      box.append(el("p", {}, why.allow ? "These rules held and gave the yes:" : "These rules gave the answer:"));
      box.append(el("ul", { class: "rules" }, rules.map((rule) => el("li", {}, typeof rule === "string" ? el("code", {}, rule)
        : [el("code", {}, text(rule.rule || rule.name || rule.path)), " ", place(rule)]))));
    }
    for (const left of why.left_out || []) box.append(el("p", { class: "faint" }, left));
    if (!ways.length && !rules.length) box.append(tree(why));
    return box;
  }

  function wayOf(way) {
    if (!way.failed) return way.text !== undefined ? conditionOf(way) : tree(way);
    return el("div", {},
      el("p", { class: "way-head" }, el("code", {}, text(way.rule)), way.gives ? [" would give ", el("code", {}, text(way.gives))] : "",
        " ", place(way, `, ${text(way.held)} of ${plural(way.conditions, "condition")} held`)),
      conditionOf(way.failed), (way.also || []).map(conditionOf));
  }

  function conditionOf(condition) {
    const words = { failed: "does not hold", earlier: "answered first", value: "is no yes", error: "cannot be evaluated", held: "holds" };
    return el("div", { class: `condition ${text(condition.kind)}` },
      el("p", { class: "where" }, el("span", { class: `badge ${condition.kind === "held" ? "allow" : "deny"}` }, words[condition.kind] || text(condition.kind) || "does not hold"), " ", place(condition)),
      el("pre", { class: "source", tabindex: "0" }, text(condition.text)),
      condition.error ? el("p", { class: "error" }, condition.error) : null,
      (condition.values || []).length ? el("dl", { class: "values" }, condition.values.map((known) => [el("dt", {}, text(known.name)), el("dd", {}, known.masked ? "(masked in the record)" : text(known.value))])) : null,
      (condition.within || []).map(conditionOf),
      (condition.because || []).map((because) => el("details", { class: "because", open: !because.told },
        el("summary", {}, el("code", {}, text(because.rule)), " is ", el("code", {}, text(because.value)), because.default ? ", its default" : "", because.told ? el("small", {}, " (told above)") : ""),
        (because.held || []).map(conditionOf), (because.ways || []).map(wayOf),
        because.more ? el("p", { class: "faint" }, `${plural(because.more, "further way")} not shown`) : null)));
  }

  function factsOf(r) {
    const filterBy = (field, value) => (value ? el("a", { href: decisionsOf(`${field}:${quoted(String(value))}`), title: "Show only these" }, String(value)) : null);
    const rows = (entries) => el("dl", { class: "facts" }, entries.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    const box = (title, entries) => (entries.some(([, value]) => value) ? el("section", {}, el("h3", {}, title), rows(entries)) : null);
    const c = r.caller || {};
    const p = r.policy || {};
    const d = r.duration_ms || {};
    const times = [["decided", d.decision], ["answer began", d.head], ["ended", d.total]].filter(([, value]) => typeof value === "number");
    const longest = Math.max(0.001, ...times.map(([, value]) => value));
    const timing = times.length ? el("section", {}, el("h3", {}, "Time"), el("div", { class: "times" }, times.map(([name, value]) => {
      const bar = el("i");
      bar.style.width = `${Math.max(1, (value / longest) * 100)}%`;
      return el("div", {}, el("span", {}, name), el("span", { class: "meter", "aria-hidden": "true" }, bar), el("span", { class: "num" }, millis(value)));
    }))) : null;
    const masked = [...(r.masked || []).map((one) => `${one} is masked`), ...(r.erased || []).map((one) => `${one} was taken out`)];
    return [
      box("Decision", [["Decision", r.decision || "none"], ["Reason", filterBy("code", r.reason)], ["Refused as", r.refusal && filterBy("code", r.refusal.code)],
        ["Policy", filterBy("policy", p.name)], ["Revision", p.revision], ["Data", p.data], ["Candidate", p.candidate], ["Bundles", p.bundles && Object.entries(p.bundles).map((one) => one.join(" ")).join(", ")],
        ["Answer kept", p.cached === undefined ? null : (p.cached ? "yes, from an equal question" : "no, it was evaluated")]]),
      box("Caller", [["Subject", filterBy("caller", c.subject)], ["Client", filterBy("caller", c.client)], ["Issuer", c.issuer], ["Known by", c.method], ["Token", c.token_id]]),
      timing,
      box("Request", [["Time", r.time], ["Host", r.host], ["Path", r.path], ["Query", r.query], ["Protocol", r.protocol], ["Route", filterBy("route", r.route)], ["Client", r.client], ["Connection", r.peer], ["User agent", r.user_agent],
        ["TLS", r.tls && [r.tls.version, r.tls.server_name].filter(Boolean).join(", ")], ["Listener", r.listener]]),
      box("Answer", [["Status", r.status === null || r.status === undefined ? null : filterBy("status", r.status)], ["Upstream", r.upstream], ["Endpoint", r.endpoint], ["Attempts", r.attempts ? String(r.attempts) : null],
        ["Bytes", `${bytes(r.bytes_in)} in, ${bytes(r.bytes_out)} out`], ["Outcome", r.outcome], ["Detail", r.detail]]),
      box("Ids", [["Decision", r.decision_id], ["Request", r.request_id], ["Trace", r.trace_id]]),
      masked.length ? el("section", {}, el("h3", {}, "Not shown"), el("ul", {}, masked.map((one) => el("li", {}, one)))) : null,
      r.answer !== undefined && r.answer !== null ? el("details", { class: "box" }, el("summary", {}, "What the policy answered"), tree(r.answer)) : null,
      r.input !== undefined && r.input !== null ? el("details", { class: "box" }, el("summary", {}, "What the policy was told"), tree(r.input)) : (r.input_left_out ? el("p", { class: "faint" }, `What the policy was told is left out: ${r.input_left_out}.`) : null),
      el("details", { class: "box" }, el("summary", {}, "The record"), copy(() => JSON.stringify(r, null, 2)), tree(r)),
    ].filter(Boolean);
  }

  function copy(of) {
    if (!navigator.clipboard) return null;
    const button = el("button", { type: "button", class: "quiet", onclick: async () => {
      try { await navigator.clipboard.writeText(of()); button.textContent = "Copied"; } catch { button.textContent = "Not allowed"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } }, "Copy");
    return button;
  }

  // --- Which section is shown ---------------------------------------------------------------------

  let current = null;
  let ticks = [];

  const query = () => $("filter").value.trim();

  function count(shown, all, one, note = "", many = `${one}s`) {
    const words = shown === all ? plural(all, one, many) : `${number(shown)} of ${plural(all, one, many)}`;
    controlsText(note ? `${words}; ${note}` : words);
  }

  function controlsText(message) {
    let place = $("counted");
    if (!place) {
      place = el("span", { id: "counted", role: "status" });
      $("controls").append(place);
    }
    if (place.textContent !== message) place.textContent = message;
  }

  function stop() {
    for (const one of ticks) one.stop();
    ticks = [];
    current = null;
  }

  /** Does something now and again, while the page can be seen and the gateway is there. */
  function repeat(work, every) {
    let timer = 0;
    let ended = false;
    const round = async () => {
      if (!document.hidden && line.up) {
        try { await work(); } catch (error) { if (!(error instanceof Trouble)) throw error; }
      }
      if (!ended) timer = setTimeout(round, every);
    };
    round();
    return { stop() { ended = true; clearTimeout(timer); } };
  }

  function route() {
    const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
    const section = sections.find((one) => one.name === path.split("/")[0]) || sections[0];
    const asked = new URLSearchParams(search || "");
    return { section, q: asked.get("q") || "", id: asked.get("id") };
  }

  function follow() {
    if (needsLogin) return;
    const { section, q, id } = route();
    if ($("filter").value !== q && document.activeElement !== $("filter")) $("filter").value = q;
    if (current && current.name === section.name) {
      if (section.own) current.view.follow(q, id);
      else refresh();
      return;
    }
    stop();
    for (const link of $("tabs").children) {
      const here = link.dataset.name === section.name;
      if (here) { link.setAttribute("aria-current", "page"); link.scrollIntoView({ block: "nearest", inline: "nearest" }); }
      else link.removeAttribute("aria-current");
    }
    document.title = `${section.title} – Portcullis`;
    $("title").textContent = section.title;
    $("filter").value = q;
    $("filter").placeholder = section.hint;
    $("controls").replaceChildren();
    const view = section.own ? decisions : section.make();
    current = { name: section.name, section, view };
    $("view").dataset.section = section.name;
    $("view").replaceChildren(view.whole);
    ticks.push(repeat(overviewTick, EVERY));
    if (section.own) {
      view.open();
      view.follow(q, id);
      ticks.push({ stop: () => view.close() });
    } else {
      const load = async () => {
        try {
          await section.load(view);
          problem("");
        } catch (error) {
          if (error instanceof Trouble && error.status !== 0 && error.status !== 401) problem(error.message);
          else throw error;
        }
      };
      current.load = load;
      ticks.push(repeat(load, section.every || EVERY));
    }
  }

  /** What the section could not be told, above it. */
  function problem(message) {
    let place = $("problem");
    if (!message) { if (place) place.remove(); return; }
    if (!place) {
      place = el("p", { id: "problem", class: "notice bad", role: "alert" });
      $("view").prepend(place);
    }
    const words = `This cannot be shown: ${message}.`;
    if (place.textContent !== words) place.textContent = words;
  }

  function refresh() {
    if (needsLogin) return;
    if (!current) { begin(); return; }
    overviewTick().catch(() => {});
    if (current.load) current.load().catch(() => {});
  }

  let typing = 0;
  function typed() {
    clearTimeout(typing);
    typing = setTimeout(() => {
      if (!current) return;
      const { id } = route();
      const asked = new URLSearchParams();
      if (query()) asked.set("q", query());
      if (id) asked.set("id", id);
      const search = asked.toString();
      history_(`#/${current.name}${search ? `?${search}` : ""}`);
      follow();
    }, 150);
  }
  const history_ = (hash) => window.history.replaceState(null, "", hash);

  function keyed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || needsLogin || $("app").hidden) return;
    const filter = $("filter");
    const inField = event.target === filter;
    if (event.key === "Escape") {
      if ($("help").open) return;
      if (inField && filter.value) { filter.value = ""; typed(); event.preventDefault(); return; }
      if (inField) { filter.blur(); $("main").focus({ preventScroll: true }); return; }
      if (current && current.view.escape && current.view.escape()) event.preventDefault();
      return;
    }
    if (inField) {
      if ((event.key === "ArrowDown" || event.key === "Enter") && current && current.view.enter) {
        current.view.enter();
        event.preventDefault();
      }
      return;
    }
    if (event.target.closest("input, textarea, select, dialog")) return;
    if (event.key === "/") { filter.focus(); filter.select(); }
    else if (event.key === "?") $("help").showModal();
    else if (event.key === "t") nextTheme();
    else if (/^[1-9]$/.test(event.key) && sections[event.key - 1]) {
      location.hash = `#/${sections[event.key - 1].name}`;
      $("main").focus({ preventScroll: true });
    }
    else if (current && current.view.key && current.view.key(event)) { /* It was theirs. */ }
    else return;
    event.preventDefault();
  }

  // --- The beginning ------------------------------------------------------------------------------

  async function begin() {
    let session;
    try {
      session = await ask("session", { login: true });
    } catch {
      $("app").hidden = false;
      return;
    }
    if (!session.open) {
      const had = stored.get("session");
      stored.set("session", null);
      showLogin(had ? "The session has ended. Log in again." : "", session.why_not);
      return;
    }
    needsLogin = false;
    $("login").hidden = true;
    $("app").hidden = false;
    current = null;
    follow();
  }

  document.addEventListener("DOMContentLoaded", () => {
    theme(stored.get("theme"));
    $("tabs").replaceChildren(...sections.map((section, index) => el("a", { href: `#/${section.name}`, "data-name": section.name, "data-title": section.title, title: `${section.title} (${index + 1})` }, section.title)));
    $("theme").addEventListener("click", nextTheme);
    $("help-button").addEventListener("click", () => $("help").showModal());
    $("logout").addEventListener("click", logout);
    $("login-form").addEventListener("submit", login);
    $("filter").addEventListener("input", typed);
    document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
    document.addEventListener("keydown", keyed);
    document.addEventListener("visibilitychange", () => { if (!document.hidden && !needsLogin) refresh(); });
    window.addEventListener("hashchange", follow);
    begin();
  });
})();
