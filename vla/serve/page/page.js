// Shows what /state says, twice a second. It asks for nothing else, and can tell the robot nothing.
"use strict";
const PAUSE_MS = 500, PATIENCE_MS = 5000;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const number = (x, digits = 1) => x.toLocaleString("en", { maximumFractionDigits: digits });
// Three digits that matter, whether it is 0.00123 or 1,230.
function short(x) {
  if (x && Math.abs(x) < 1e-3) return x.toExponential(1);
  return x.toLocaleString("en", { maximumSignificantDigits: 3 });
}
const percent = (x) => number(100 * x, 0);

// The key in the address, as it is: "+" is a character of it.
function key() {
  const found = location.hash.startsWith("#key=") ? location.hash.slice(5) : "";
  try { return decodeURIComponent(found); } catch { return found; }
}

// All text comes in here, and as text.
function made(name, text = "", kind = "") {
  const element = document.createElement(name);
  element.textContent = text;
  element.className = kind;
  return element;
}

function within(name, ...children) {
  const element = made(name);
  element.append(...children);
  return element;
}

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

const list = (rows) => rows.map(([term, value]) => within("div", made("dt", term), made("dd", value)));

function picture(camera) {
  const id = "camera " + camera.name;
  let canvas = at(id);
  if (!canvas) {
    canvas = made("canvas");
    canvas.id = id;
    at("cameras").append(within("figure", canvas, made("figcaption", camera.name)));
  }
  const bytes = atob(camera.rgb), pixels = new ImageData(camera.width, camera.height);
  for (let from = 0, to = 0; from < bytes.length; to += 4) {
    for (let channel = 0; channel < 3; channel++) pixels.data[to + channel] = bytes.charCodeAt(from++);
    pixels.data[to + 3] = 255;
  }
  canvas.width = camera.width;
  canvas.height = camera.height;
  canvas.className = camera.width < 128 ? "small" : "";
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function latency(state) {
  const latencies = state.latencies_ms, most = Math.max(...latencies, 1e-9);
  const step = 300 / Math.max(latencies.length - 1, 1);
  const points = latencies.map((ms, i) => `${(i * step).toFixed(1)},${(57 - 54 * ms / most).toFixed(1)}`);
  at("spark").replaceChildren(drawn("polyline", { points: points.join(" ") }));
  at("latest").textContent = number(latencies.at(-1));
  const spread = `p50 ${number(state.p50_ms)}, p95 ${number(state.p95_ms)}, most ${number(most)} ms`;
  at("percentiles").textContent =
    `${spread}, of the last ${latencies.length}; the network itself ${number(state.last.network_ms)} ms`;
}

// What becomes of a step: "frozen" was committed before, "after" the policy said STOP nothing is meant.
const fate = (step, last) => step >= last.length ? "after" : step < last.frozen_steps ? "frozen" : "";

// One panel for a dimension: the action of each step, from the middle up or down; below it how sure the policy is.
function panel(name, dim, last, executed) {
  const values = last.actions.map((step) => step[dim]), sure = last.confidence.map((step) => step[dim]);
  const most = Math.max(...values.map(Math.abs), 1e-9), width = 200 / values.length;
  const chart = drawn("svg", { viewBox: "0 0 200 110", preserveAspectRatio: "none", role: "img",
    "aria-label": `${name}: ${values.map(short).join(", ")}; confidence ${sure.map(percent).join(", ")} %` });
  chart.append(drawn("line", { x1: 0, x2: 200, y1: 76, y2: 76, class: "floor" }));
  values.forEach((value, step) => {
    const height = Math.max(34 * Math.abs(value) / most, 0.75), gap = width > 4 ? 1 : 0;
    const bar = drawn("rect", { x: step * width + gap, width: width - 2 * gap, y: value > 0 ? 38 - height : 38, height,
      opacity: 0.3 + 0.7 * sure[step], class: fate(step, last) });
    const hint = drawn("title", {});
    hint.textContent = `step ${step + 1}: ${short(value)}, confidence ${percent(sure[step])} %`;
    bar.append(hint);
    chart.append(bar);
  });
  chart.append(drawn("line", { x1: 0, x2: 200, y1: 38, y2: 38 }));
  if (executed < values.length) {
    chart.append(drawn("line", { x1: executed * width, x2: executed * width, y1: 0, y2: 110, class: "until" }));
  }
  const stairs = sure.flatMap((x, step) => [0, 1].map((end) => `${(step + end) * width},${106 - 26 * x}`));
  chart.append(drawn("polyline", { points: stairs.join(" ") }));
  const head = within("div", made("strong", name), made("span", `first ${short(values[0])}`));
  const foot = within("div", made("span", `scale ±${short(most)}`),
    made("span", "sure " + [...new Set([percent(Math.min(...sure)), percent(Math.max(...sure))])].join(" to ") + " %"));
  head.className = foot.className = "row";
  return within("div", head, chart, foot);
}

function legend(last, about) {
  const entries = [["", "action of each step, from the first on"], ["sure", "confidence, from 0 to 100 %"]];
  const { n_action_steps: executed, horizon } = about;
  if (executed < horizon) entries.push(["until", `${executed} are executed before it is asked again`]);
  if (last.frozen_steps) entries.push(["frozen", `committed before: the first ${last.frozen_steps}`]);
  if (last.length < horizon) entries.push(["after", `STOP after ${last.length}: the rest is not meant to be executed`]);
  at("legend").replaceChildren(...entries.map(([kind, text]) => {
    const entry = within("span", made("i"), text);
    entry.className = kind;
    return entry;
  }));
}

function metadata(about) {
  const rows = {
    checkpoint: about.checkpoint, sha256: about.checkpoint_sha256,
    server: `vla ${about.server_version}, protocol ${about.protocol}`,
    cameras: about.cameras.map((name) => `${name} (${about.image_size} px)`).join(", ") || "none",
    state: about.state_names.join(", "), actions: about.action_names.join(", "),
    units: "those of the dataset that the policy was trained on",
    chunk: `${about.horizon} steps at ${number(about.fps)} a second, of which ${about.n_action_steps} are executed`,
    supports: about.supports.join(", "), deadline: `${number(about.deadline_ms, 0)} ms`,
  };
  const known = Object.entries(rows).filter(([, value]) => value);
  at("about").replaceChildren(...known.map(([name, value]) => within("tr", made("td", name), made("td", value))));
}

function show(state) {
  const { last, metadata: about } = state;
  document.body.className = at("status").className = "";
  at("checkpoint").textContent = about.checkpoint;
  at("status").textContent = last ? `last answered ${state.age_s.toFixed(1)} s ago` : "nobody has asked yet";
  const names = ["requests", "answered", "clients", "errors"];
  at("counts").replaceChildren(...list(names.map((name) => [name, number(state[name], 0)])));
  const shown = last ? String(state.number) : "0";
  if (document.body.dataset.shown === shown) return;
  if (!last && at("chunk").firstChild) return location.reload();  // a new server: forget what the old one was asked
  metadata(about);
  if (last) {
    last.cameras.forEach(picture);
    at("prompt").textContent = last.prompt;
    at("plan").textContent = last.plan ? `plan: ${last.plan}` : "";
    at("state").replaceChildren(...list(about.state_names.map((name, i) => [name, short(last.state[i])])));
    latency(state);
    legend(last, about);
    at("chunk").replaceChildren(...about.action_names.map((name, dim) => panel(name, dim, last, about.n_action_steps)));
  }
  document.body.dataset.shown = shown;
}

function lost(why) {
  at("status").textContent = why;
  document.body.className = at("status").className = "lost";
  delete document.body.dataset.shown;  // whoever answers next may be another server, that counts from 1 again
}

let timer;
async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  let state = null, asks = true;
  try {
    const headers = key() ? { Authorization: "Api-Key " + key() } : {};
    const reply = await fetch("state", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    asks = reply.status !== 401;
    if (reply.ok) state = await reply.json();
    else lost(asks ? `the server says ${reply.status}` : "this server wants its key: add #key=... to the address");
  } catch {
    lost("the server does not answer");
  }
  clearTimeout(timer);
  if (asks) timer = setTimeout(look, PAUSE_MS);
  if (state) show(state);
}
addEventListener("hashchange", look);
document.addEventListener("visibilitychange", look);
look();
