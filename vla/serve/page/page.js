// Shows what /state says, twice a second. It asks for nothing else, and can tell the robot nothing.
"use strict";
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const key = new URLSearchParams(location.hash.slice(1)).get("key");
const headers = key ? { Authorization: "Api-Key " + key } : {};
const number = (x, digits = 1) => x.toLocaleString("en", { maximumFractionDigits: digits });

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

function picture(camera) {
  const id = "camera " + camera.name;
  let canvas = at(id);
  if (!canvas) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    canvas = document.createElement("canvas");
    canvas.id = id;
    caption.textContent = camera.name;
    figure.append(canvas, caption);
    at("cameras").append(figure);
  }
  const bytes = atob(camera.rgb), pixels = new ImageData(camera.width, camera.height);
  for (let from = 0, to = 0; from < bytes.length; to += 4) {
    for (let channel = 0; channel < 3; channel++) pixels.data[to + channel] = bytes.charCodeAt(from++);
    pixels.data[to + 3] = 255;
  }
  canvas.width = camera.width;
  canvas.height = camera.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function sparkline(latencies) {
  const most = Math.max(...latencies, 1e-9), step = 300 / Math.max(latencies.length - 1, 1);
  const points = latencies.map((ms, i) => `${(i * step).toFixed(1)},${(57 - 54 * ms / most).toFixed(1)}`);
  at("spark").replaceChildren(drawn("polyline", { points: points.join(" ") }));
}

// One panel for a dimension: a bar for each step, from the middle up or down, as dark as the policy is sure.
function panel(name, dim, last) {
  const box = document.createElement("div"), head = document.createElement("div"), title = document.createElement("strong");
  const values = last.actions.map((step) => step[dim]), most = Math.max(...values.map(Math.abs), 1e-9);
  const label = document.createElement("span"), chart = drawn("svg", { viewBox: "0 0 200 76", preserveAspectRatio: "none" });
  head.className = "name";
  title.textContent = name;
  label.textContent = `${number(values[0], 3)} now, ±${number(most, 3)}`;
  head.append(title, label);
  const width = 200 / values.length;
  values.forEach((value, step) => {
    const height = 34 * Math.abs(value) / most;
    chart.append(drawn("rect", {
      x: step * width + 1, width: width - 2, y: value > 0 ? 38 - height : 38, height: Math.max(height, 0.5),
      opacity: 0.12 + 0.88 * last.confidence[step][dim],
    }));
  });
  chart.append(drawn("line", { x1: 0, x2: 200, y1: 38, y2: 38 }));
  box.append(head, chart);
  return box;
}

function counts(state) {
  const rows = { requests: state.requests, answered: state.answered, clients: state.clients, errors: state.errors };
  at("counts").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const box = document.createElement("div"), term = document.createElement("dt"), value_ = document.createElement("dd");
    term.textContent = name;
    value_.textContent = number(value, 0);
    box.append(term, value_);
    return box;
  }));
}

function show(state) {
  at("checkpoint").textContent = state.metadata.checkpoint;
  const about = state.metadata;
  counts(state);
  const last = state.last;
  const told = `a chunk of ${about.horizon} steps, of which ${about.n_action_steps} are executed, at ${number(about.fps)} steps a second`;
  at("status").className = "";
  at("status").textContent = last ? `${told}; last asked ${number(state.age_s)} s ago` : `${told}; nobody has asked yet`;
  if (!last) return;
  last.cameras.forEach(picture);
  at("prompt").textContent = last.prompt;
  at("plan").textContent = last.plan ? `plan: ${last.plan}` : "";
  at("state").textContent = about.state_names.map((name, i) => `${name} ${number(last.state[i], 3)}`).join("   ");
  at("latest").textContent = number(state.latencies_ms.at(-1));
  at("percentiles").textContent =
    `p50 ${number(state.p50_ms)} ms, p95 ${number(state.p95_ms)} ms, of the last ${state.latencies_ms.length}; the network itself ${number(last.network_ms)} ms`;
  sparkline(state.latencies_ms);
  const frozen = last.frozen_steps ? `; the first ${last.frozen_steps} were committed before` : "";
  at("chunknote").textContent =
    `one panel for each dimension of the action, a bar for each step; a bar is as dark as the policy is sure${frozen}`;
  at("chunk").replaceChildren(...about.action_names.map((name, dim) => panel(name, dim, last)));
  document.body.dataset.shown = state.number;
}

async function look() {
  try {
    const reply = await fetch("state", { headers, cache: "no-store" });
    if (reply.status === 401) throw new Error("this server wants a key: add #key=... to the address");
    if (!reply.ok) throw new Error(`the server says ${reply.status}`);
    show(await reply.json());
  } catch (error) {
    at("status").className = "lost";
    at("status").textContent = error instanceof TypeError ? "the server does not answer" : error.message;
  }
  setTimeout(look, 500);
}
look();
