// Traces of all sensors, and a map of the head at one time; the time is a slider, so keys move it too.

import { element } from "./page.js";

const INK = "#1d2330";
const SOFT = "#5d6678";
const LEFT = 46;

export function plots(signal, interpolated) {
  const n = signal.times_ms.length;
  const power = signal.times_ms.map((_, i) => signal.traces.reduce((sum, row) => sum + row[i] * row[i], 0));
  const known = signal.positions.filter(Boolean).length;
  const traces = element("canvas", { width: 560, height: 260 });
  const map = element("canvas", { width: 300, height: 300 });
  for (const canvas of [traces, map]) canvas.setAttribute("role", "img");
  const mapWords = element("figcaption");
  const time = element("input", { type: "range", min: 0, max: n - 1, value: power.indexOf(Math.max(...power)) });
  const names = element("input", { type: "checkbox" });
  const timeWords = element("output");
  const draw = () => {
    const at = Number(time.value);
    const ms = `${Math.round(signal.times_ms[at])} ms`;
    drawTraces(traces, signal, at);
    timeWords.textContent = ms;
    time.setAttribute("aria-valuetext", ms);
    if (known < 4) return;
    drawMap(map, signal, at, names.checked);
    mapWords.textContent = `map at ${ms}, nose up, red is positive`;
    map.setAttribute("aria-label", `map of the head at ${ms}: ${extremes(signal, at)}`);
  };
  traces.setAttribute("aria-label", `traces of ${signal.ch_names.length} ${signal.kind} sensors over time`);
  traces.addEventListener("mousemove", (event) => {
    const x = (event.offsetX / traces.clientWidth * traces.width - LEFT) / (traces.width - LEFT - 10);
    time.value = Math.max(0, Math.min(n - 1, Math.round(x * (n - 1))));
    draw();
  });
  time.addEventListener("input", draw);
  names.addEventListener("change", draw);
  const where = known < signal.ch_names.length ? `, ${signal.ch_names.length - known} of them at unknown places` : "";
  const filled = interpolated.length ? `; ${interpolated.length} more were interpolated` : "";
  const view = element("div", {},
    element("div", { className: "signals" },
      element("figure", {}, traces, element("figcaption", { textContent: `${signal.ch_names.length} ${signal.kind} sensors, ${signal.unit}${where}${filled}` })),
      ...(known >= 4 ? [element("figure", {}, map, mapWords)] : [])),
    element("div", { className: "time" }, element("label", { className: "time" }, "time ", time), timeWords,
      ...(known >= 4 ? [element("label", { className: "time" }, names, " sensor names")] : [])));
  draw();
  return view;
}

function extremes(signal, at) {
  const values = signal.traces.map((row) => row[at]);
  const named = (value) => `${signal.ch_names[values.indexOf(value)]} ${value.toPrecision(2)} ${signal.unit}`;
  return `highest ${named(Math.max(...values))}, lowest ${named(Math.min(...values))}`;
}

const peakOf = (signal) => Math.max(1e-9, ...signal.traces.map((row) => Math.max(...row.map(Math.abs))));

function drawTraces(canvas, signal, at) {
  const pen = canvas.getContext("2d");
  const [w, h] = [canvas.width, canvas.height];
  const peak = peakOf(signal);
  const n = signal.times_ms.length;
  const x = (i) => LEFT + (w - LEFT - 10) * i / Math.max(1, n - 1);
  const y = (value) => h / 2 - 8 - (h / 2 - 18) * value / peak;
  pen.clearRect(0, 0, w, h);
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = pen.strokeStyle = SOFT;
  pen.fillText(peak.toPrecision(2), 2, y(peak) + 4);
  pen.fillText("0", 32, y(0) + 4);
  pen.fillText((-peak).toPrecision(2), 2, y(-peak) + 4);
  const [first, last] = [signal.times_ms[0], signal.times_ms[n - 1]];
  const tick = (last - first) > 800 ? 200 : 100;
  for (let t = Math.ceil(first / tick) * tick; t <= last; t += tick) {
    const position = LEFT + (w - LEFT - 10) * (t - first) / Math.max(1e-9, last - first);
    pen.textAlign = "center"; pen.fillText(t === 0 ? "0 ms" : `${t}`, Math.min(position, w - 16), h - 4); pen.textAlign = "start";
    pen.globalAlpha = t === 0 ? 0.6 : 0.15;
    pen.beginPath(); pen.moveTo(position, 8); pen.lineTo(position, h - 18); pen.stroke();
    pen.globalAlpha = 1;
  }
  signal.traces.forEach((row, k) => {
    pen.strokeStyle = `hsl(${Math.round(300 * k / signal.traces.length)} 60% 45% / .55)`;
    pen.beginPath();
    row.forEach((value, i) => i ? pen.lineTo(x(i), y(value)) : pen.moveTo(x(i), y(value)));
    pen.stroke();
  });
  pen.strokeStyle = INK;
  pen.beginPath(); pen.moveTo(x(at), 8); pen.lineTo(x(at), h - 18); pen.stroke();
}

function drawMap(canvas, signal, at, named) {
  const pen = canvas.getContext("2d");
  const [size, radius] = [canvas.width, canvas.width * 0.42];
  const [cx, cy] = [size / 2, size / 2 + 6];
  // the lowest sensors lie on the rim of the head
  const reach = radius / Math.max(...signal.positions.map((p) => p ? Math.hypot(p[0] - 0.5, p[1] - 0.5) : 0));
  const sensors = signal.positions.flatMap((p, k) => p
    ? [{ x: cx + (p[0] - 0.5) * reach, y: cy - (p[1] - 0.5) * reach, value: signal.traces[k][at], name: signal.ch_names[k] }] : []);
  const peak = peakOf(signal);
  pen.clearRect(0, 0, size, size);
  pen.save();
  pen.beginPath(); pen.arc(cx, cy, radius * 1.06, 0, 2 * Math.PI); pen.clip();
  const cell = 3;
  for (let px = 0; px < size; px += cell) for (let py = 0; py < size; py += cell) {
    const [mx, my] = [px + cell / 2, py + cell / 2];
    if (Math.hypot(mx - cx, my - cy) > radius * 1.06 + cell) continue;
    let weight = 0, sum = 0;
    for (const sensor of sensors) {
      const w = 1 / Math.pow((mx - sensor.x) ** 2 + (my - sensor.y) ** 2 + 40, 2);
      weight += w; sum += w * sensor.value;
    }
    const value = Math.max(-1, Math.min(1, sum / weight / peak));
    const fade = Math.round(255 * (1 - Math.abs(value)));
    pen.fillStyle = value > 0 ? `rgb(255 ${fade} ${fade})` : `rgb(${fade} ${fade} 255)`;
    pen.fillRect(px, py, cell, cell);
  }
  pen.restore();
  pen.strokeStyle = pen.fillStyle = INK;
  pen.lineWidth = 1.5;
  pen.beginPath(); pen.arc(cx, cy, radius * 1.06, 0, 2 * Math.PI); pen.stroke();
  pen.beginPath(); pen.moveTo(cx - 10, cy - radius * 1.05); pen.lineTo(cx, cy - radius * 1.16); pen.lineTo(cx + 10, cy - radius * 1.05); pen.stroke();
  pen.font = "9px system-ui, sans-serif";
  pen.textAlign = "center";
  for (const sensor of sensors) {
    if (named) pen.fillText(sensor.name, sensor.x, sensor.y + 3);
    else pen.fillRect(sensor.x - 1, sensor.y - 1, 2.5, 2.5);
  }
}
