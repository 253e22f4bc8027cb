"use strict";
// The Gantt chart of a run, as SVG: a row a call, below the program that it belongs to. `view` is the part of the run
// that is shown, as shares of its length.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 16, LABEL = 150, NOTE = 150, AXIS = 20, MOST_ROWS = 400;
const KINDS = ["gateway", "held", "queue", "prefill", "decode", "preempted", "tools"];

function seconds(us) {
  const value = us / 1e6;
  if (!us) return "0";
  if (value < 0.1) return `${(us / 1000).toFixed(0)} ms`;
  if (value < 100) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return value < 6000 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function kindClass(kind) {
  return KINDS.includes(kind) ? kind : "other";
}

// The rows of a run: titles of programs, their tools, their calls.
function rowsOf(run) {
  const rows = [];
  run.programs.forEach((program, index) => {
    if (index || run.programs.length > 1) rows.push({ title: program.name ? `${program.id} (${program.name})` : program.id });
    if (program.tools.length) rows.push({ tools: program.tools });
    const left = Math.max(0, program.calls.length - MOST_ROWS) + program.left_out;
    if (left) rows.push({ note: `${left} earlier calls are not shown` });
    for (const call of program.calls.slice(-MOST_ROWS)) rows.push({ call });
  });
  return rows;
}

function step(length) {
  const base = 10 ** Math.floor(Math.log10(length / 5));
  return [1, 2, 5, 10].map((factor) => factor * base).find((each) => length / each <= 8) || base * 10;
}

// `view`: {from, to} in [0, 1]; `onChoose(call)` when a row is clicked; `chosen`: id of the call that is.
function gantt(run, width, view, chosen, onChoose) {
  const rows = rowsOf(run), plot = Math.max(100, width - LABEL - NOTE);
  const all = Math.max(1, run.end - run.begin), begin = run.begin + view.from * all, length = (view.to - view.from) * all;
  const x = (us) => LABEL + Math.min(1, Math.max(0, (us - begin) / length)) * plot;
  const svg = shape("svg", { height: AXIS + rows.length * ROW + 4, role: "img" });
  const tick = step(length);
  for (let at = Math.ceil((begin - run.begin) / tick) * tick; at <= begin - run.begin + length; at += tick) {
    const left = x(run.begin + at);
    svg.append(shape("line", { x1: left, x2: left, y1: AXIS - 4, y2: AXIS + rows.length * ROW }));
    svg.append(shape("text", { x: left + 2, y: 11, class: "axis" }, seconds(at)));
  }
  rows.forEach((row, index) => {
    const top = AXIS + index * ROW;
    const bar = (kind, from, to, title) => {
      const left = x(from), right = x(to);
      if (to < begin || from > begin + length) return;
      const part = shape("rect", { x: left, y: top + 3, width: Math.max(0.7, right - left), height: ROW - 5, rx: 1,
        class: `part ${kindClass(kind)}` });
      part.append(shape("title", {}, `${title}, ${seconds(to - from)}`));
      svg.append(part);
    };
    if (row.title) svg.append(shape("text", { x: 0, y: top + 12, class: "title" }, row.title));
    if (row.note) svg.append(shape("text", { x: 0, y: top + 12, class: "note" }, row.note));
    if (row.tools) {
      svg.append(shape("text", { x: 0, y: top + 12, class: "note" }, "tools"));
      for (const tool of row.tools) bar("tools", tool.begin, tool.end, tool.name || "between calls");
    }
    if (row.call) {
      const call = row.call, hit = shape("rect", { x: 0, y: top, width, height: ROW,
        class: call.id === chosen ? "hit chosen" : "hit" });
      hit.addEventListener("click", () => onChoose(call));
      svg.append(shape("text", { x: 0, y: top + 12 }, `${call.id.split(".").pop()}  ${shorten(call.engine, 16)}`));
      for (const [kind, from, to] of call.parts) bar(kind, from, to, kind);
      const words = [seconds(call.end - call.begin), call.outcome ? "" : "in flight", call.prefix].filter(Boolean);
      svg.append(shape("text", { x: LABEL + plot + 8, y: top + 12, class: "note" }, words.join(" · ")));
      svg.append(hit);
    }
  });
  return svg;
}

function shorten(text, most) {
  return text.length <= most ? text : `${text.slice(0, most / 2 - 1)}…${text.slice(-most / 2)}`;
}
