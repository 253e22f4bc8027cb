"use strict";
// The page: a list of programs at the left; engines, the policy and one run at the right. Asks for all of it once a
// second while it is visible. Text of others is only ever set as textContent.

const TOKEN_HEADER = "X-Agentserving-Ui-Token", EVERY_MS = 1000;
const state = { programs: [], more: false, cluster: null, run: null, selected: "", call: "", hold: false, shown: false,
  view: { from: 0, to: 1 } };

const byId = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (key === "style") for (const [name, text] of Object.entries(value)) made.style.setProperty(name, text);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// -- the server ---------------------------------------------------------------------------------------------------

// The URL's fragment brings the token, and perhaps the program to begin with; then it is taken out of the history.
function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("token")) sessionStorage.setItem("token", given.get("token"));
  state.selected = given.get("program") || "";
  if (location.hash) history.replaceState(null, "", location.pathname);
}

async function ask(path) {
  const response = await fetch(path, { headers: { [TOKEN_HEADER]: sessionStorage.getItem("token") || "" } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || `HTTP ${response.status}`);
  return answer;
}

async function refresh() {
  try {
    const wanted = state.selected;
    const [list, cluster, run] = await Promise.all([
      ask("/api/programs"), ask("/api/cluster"), wanted ? ask(`/api/trace/${encodeURIComponent(wanted)}`) : null,
    ]);
    state.programs = list.programs;
    state.more = list.more;
    state.cluster = cluster;
    if (wanted === state.selected) state.run = run;
    show("");
    if (!state.shown) showSelected();
    state.shown = true;
  } catch (error) {
    show(error instanceof TypeError ? "`agentserving ui` has ended: start it again and open its URL" : error.message);
  }
}

async function loop() {
  if (!document.hidden && !state.hold) await refresh();
  setTimeout(loop, EVERY_MS);
}

// -- the list -----------------------------------------------------------------------------------------------------

function visible() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean), closed = byId("closed").checked;
  const matches = (program) => {
    const text = `${program.id} ${program.name} ${program.outcome || program.state} ${program.tool} ${program.service}`.toLowerCase();
    return (closed || program.state !== "closed" || program.id === state.selected) && words.every((w) => text.includes(w));
  };
  const known = new Map(state.programs.map((program) => [program.id, program])), children = new Map(), roots = [];
  const shown = new Set();
  for (const program of state.programs.filter(matches)) {
    // What is above a match is shown, so that it can be seen where it belongs.
    for (let at = program; at && !shown.has(at.id); at = known.get(at.parent)) shown.add(at.id);
  }
  for (const program of state.programs) {
    if (!shown.has(program.id)) continue;
    if (!program.parent || !known.has(program.parent)) roots.push(program);
    else children.set(program.parent, [...(children.get(program.parent) || []), program]);
  }
  const busy = (program) => program.running + program.queued + (children.get(program.id) || []).reduce((n, c) => n + busy(c), 0);
  const newest = (a, b) => (busy(b) > 0) - (busy(a) > 0) || b.opened - a.opened;
  const rows = [];
  const add = (program, depth) => {
    rows.push({ program, depth });
    for (const child of (children.get(program.id) || []).sort((a, b) => a.opened - b.opened)) add(child, depth + 1);
  };
  roots.sort(newest).forEach((root) => add(root, 0));
  return rows;
}

function split(times) {
  const total = KINDS.reduce((sum, kind) => sum + (times[kind] || 0), 0);
  if (!total) return null;
  return h("div", { class: "split" }, ...KINDS.filter((kind) => times[kind]).map((kind) => {
    const words = `${kind} ${seconds(times[kind])} (${Math.round(100 * times[kind] / total)} %)`;
    return h("i", { class: kind, title: words, style: { width: `${100 * times[kind] / total}%` } });
  }));
}

function stateTag(program) {
  const waiting = program.state === "active" && program.queued && !program.running;
  const doing = program.spent ? "paused: budget" : program.tool ? `tool: ${program.tool}` : waiting ? "waiting" : program.state;
  const words = program.outcome || doing;
  return h("span", { class: `tag ${waiting ? "waiting" : program.outcome || program.state}` }, words.replace("_", " "));
}

function showList() {
  const list = byId("list"), rows = visible();
  list.replaceChildren(...rows.map(({ program, depth }) => {
    const counts = [[program.running, "running"], [program.queued, "queued"], [program.done, "done"]];
    const calls = counts.filter(([count]) => count).map((pair) => pair.join(" ")).join(", ") || "no calls";
    return h("div", {
      class: "program", role: "treeitem", "aria-selected": program.id === state.selected, "aria-level": depth + 1,
      "data-id": program.id, style: { "padding-left": `${12 + 16 * depth}px` }, onclick: () => select(program.id),
    },
    h("span", { class: "name", title: program.id }, depth ? "└ " : "", program.id),
    stateTag(program),
    h("span", { class: "small" }, `${program.name ? `${program.name} · ` : ""}${calls}`),
    h("span", { class: "small" }, `${program.service ? `${program.service} · ` : ""}level ${program.level} · ${seconds(program.attained)}`),
    split(program.split));
  }));
  if (!rows.length) list.append(h("p", { class: "empty program" }, "no program"));
  if (state.more) list.append(h("p", { class: "empty program" }, "and more: agentserving ps"));
}

function select(id) {
  if (state.selected !== id) Object.assign(state, { selected: id, run: null, call: "", view: { from: 0, to: 1 } });
  showAll();
  showSelected();
  refresh();
}

function showSelected() {
  const row = [...byId("list").children].find((each) => each.dataset.id === state.selected);
  if (row) row.scrollIntoView({ block: "nearest" });
}

function move(by) {
  const rows = visible(), at = rows.findIndex((row) => row.program.id === state.selected);
  const next = rows[Math.min(rows.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
  if (next) select(next.program.id);
}

// -- engines and policy -------------------------------------------------------------------------------------------

function showCluster() {
  const cluster = state.cluster, place = byId("cluster");
  if (!cluster) return;
  if (cluster.hidden) {
    byId("headline").textContent = `${state.programs.length} programs`;
    place.replaceChildren(h("p", { class: "dim" }, cluster.hidden));
    return;
  }
  const { counts, policy } = cluster;
  byId("headline").textContent = `${counts.programs} ${counts.programs === 1 ? "program" : "programs"}; calls: ${counts.running} running, ${counts.waiting} queued, ` +
    `${counts.completed} done${counts.unmanaged ? `, ${counts.unmanaged} unmanaged` : ""}${state.hold ? " — on hold" : ""}`;
  place.replaceChildren(h("div", { class: "cards" },
    h("div", { class: "card policy" },
      h("h2", {}, `policy ${policy.name}`),
      h("p", { class: "dim" }, `version ${policy.version}, balancer ${policy.balancer.replaceAll("_", " ")}`),
      ...policy.choices.map((choice) => h("p", {},
        h("b", {}, `${choice.class === null ? "all programs" : choice.class || "unnamed programs"}: ${choice.chosen}`), `, ${choice.reason}`)),
      policy.pending.length ? h("p", { class: "dim" }, `not followed yet by ${policy.pending.join(", ")}`) : null,
      cluster.store ? h("p", { class: "tag failed" }, `store: ${cluster.store}`) : null,
      cluster.tenants.length ? h("p", {}, `shares: ${cluster.tenants.map((t) => `${t.tenant} ${t.weight}${t.service ? ` (at best ${t.service})` : ""}`).join(", ")}`) : null),
    ...cluster.engines.map((engine) => {
      const used = engine.blocks ? 1 - engine.free / engine.blocks : 0;
      return h("div", { class: "card engine" },
        h("h2", {}, h("span", {}, engine.id), h("span", { class: `tag ${engine.state}` }, engine.state)),
        h("p", {}, `KV ${Math.round(100 * used)} %, cache hits ${Math.round(100 * engine.cached)} %`),
        h("div", { class: "meter" }, h("i", { style: { width: `${100 * used}%` } })),
        h("p", {}, `${engine.running} of ${engine.slots} running, ${engine.waiting} queued`),
        h("p", { class: "dim" }, engine.reason || `${engine.preemptions} preemptions, ${engine.version}`));
    })));
}

// -- the run ------------------------------------------------------------------------------------------------------

function showRun() {
  const place = byId("run"), run = state.run;
  if (!state.selected) return;
  if (!run) {
    place.replaceChildren(h("p", { class: "empty" }, "loading"));
    return;
  }
  const program = run.programs[0], cached = program.prompt ? `${Math.round(100 * program.cached / program.prompt)} % cached` : "";
  const total = KINDS.reduce((sum, kind) => sum + (program.split[kind] || 0), 0);
  const misses = program.misses.map(([miss, calls]) => `${calls} ${miss}`).join(", ");
  const call = run.programs.flatMap((each) => each.calls).find((each) => each.id === state.call);
  const chart = h("div", {});
  place.replaceChildren(h("div", { class: "card" },
    h("h2", {}, program.name ? `${program.id} (${program.name})` : program.id, " ", stateTag(program)),
    h("div", { class: "facts" },
      fact("calls", program.done + program.running + program.queued), fact("duration", seconds(run.end - run.begin)),
      fact("class", program.service || "-"), fact("attained", seconds(program.attained)), fact("level", program.level),
      fact("tokens", `${program.prompt} prompt${cached ? `, ${cached}` : ""}; ${program.output} output`),
      fact("preemptions", program.preemptions), misses ? fact("prefix", misses) : null,
      program.budget ? fact("budget", `${program.budget} spent`) : null),
    split(program.split),
    h("div", { class: "legend" }, ...KINDS.map((kind) => h("span", { class: kind }, program.split[kind]
      ? `${kind} ${seconds(program.split[kind])} (${Math.round(100 * program.split[kind] / total)} %)` : kind))),
    call ? callDetails(call) : null,
    chart,
    run.left_out ? h("p", { class: "dim" }, `and ${run.left_out} more sub-agents`) : null));
  const known = run.programs.some((each) => each.calls.length);
  if (!known) chart.append(h("p", { class: "empty" }, "no call of it is known: none yet, or the control plane has restarted"));
  else chart.append(gantt(run, chart.clientWidth, state.view, state.call, (chosen) => {
    state.call = chosen.id === state.call ? "" : chosen.id;
    showRun();
  }));
}

function fact(name, value) {
  return h("span", {}, h("span", { class: "dim" }, `${name} `), h("b", {}, String(value)));
}

function callDetails(call) {
  const rows = [
    ["call", call.id], ["engine", call.engine], ["thread", call.thread || "-"], ["outcome", call.outcome || "in flight"],
    ["first token", call.first_token === null ? "-" : seconds(call.first_token)],
    ["prefix", `${call.prefix || "not known"}: ${call.cached} of ${call.prompt} tokens cached, ${call.common} in common`],
    ["output", `${call.output} tokens`], ["level", call.level], ["preemptions", call.preemptions],
    ["parts", call.parts.map(([kind, from, to]) => `${kind} ${seconds(to - from)}`).join(", ")],
  ];
  return h("table", { id: "call" }, ...rows.map(([name, value]) => h("tr", {}, h("th", {}, name), h("td", {}, String(value)))));
}

function zoom(factor, shift) {
  const { from, to } = state.view, length = Math.min(1, (to - from) * factor), middle = (from + to) / 2 + shift * (to - from);
  const left = Math.min(1 - length, Math.max(0, middle - length / 2));
  state.view = { from: left, to: left + length };
  showRun();
}

// -- keys and theme -----------------------------------------------------------------------------------------------

function show(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error;
  showAll();
}

function showAll() {
  showList();
  showCluster();
  showRun();
}

function theme(chosen) {
  document.documentElement.dataset.theme = chosen;
  localStorage.setItem("theme", chosen);
}

const flip = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
const KEYS = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  "/": () => byId("filter").focus(), t: flip, "+": () => zoom(0.5, 0), "=": () => zoom(0.5, 0), "-": () => zoom(2, 0),
  ArrowLeft: () => zoom(1, -0.25), ArrowRight: () => zoom(1, 0.25), 0: () => zoom(1e9, 0),
  " ": () => { state.hold = !state.hold; showCluster(); },
};

document.addEventListener("keydown", (event) => {
  if (event.target.id === "filter") {
    if (event.key === "Escape" || event.key === "Enter") byId("list").focus();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
byId("theme").addEventListener("click", flip);
byId("filter").addEventListener("input", showList);
byId("closed").addEventListener("change", showList);
addEventListener("resize", showRun);
theme(localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
readFragment();
loop();
