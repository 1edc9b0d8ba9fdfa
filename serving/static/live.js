// A simulated recording runs: chunks go out over a WebSocket, decoded epochs come back.

import { $, ask, element, key, problemOf, showProblem } from "./page.js";
import { epochView } from "./results.js";

const CHUNK_S = 0.1;
const STRIP_S = 6;
const N_SHOWN = 10;
let running = null;

export async function startLive() {
  $("problem").hidden = true;
  $("live-go").disabled = true;
  try {
    await open();
  } catch (problem) {
    showProblem(problem);
    $("live-go").disabled = false;
  }
}

async function open() {
  const response = await ask("/example/live.json");
  if (!response.ok) throw await problemOf(response);
  const recording = await response.json();
  const bytes = Uint8Array.from(atob(recording.samples), (character) => character.charCodeAt(0));
  recording.data = new Float32Array(bytes.buffer);
  const address = new URL("/v1/stream", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address, ["phosphene", ...(key() ? [`key.${key()}`] : [])]);
  running = { socket, recording, sent: 0, timer: 0, marks: [], counts: { decoded: 0, refused: 0 }, ended: false };
  $("live-epochs").replaceChildren();
  $("live-view").hidden = $("live-stop").hidden = false;
  tell("connecting");
  socket.onopen = () => socket.send(JSON.stringify({ ...recording.start, options: options() }));
  socket.onmessage = (event) => take(running, JSON.parse(event.data));
  socket.onclose = (event) => finish(event);
}

export function stopLive() {
  if (!running) return;
  running.ended = true;
  running.socket.close(1000);
}

function options() {
  return { images: 1, average: $("average").checked, seed: Number($("seed").value), subject: $("subject").value, purpose: $("purpose").value, bundle: $("bundle").value, consent: $("consent").checked };
}

function tell(words) { $("live-words").textContent = words; }

function take(live, message) {
  if (message.type === "ready") {
    live.began = performance.now();
    live.timer = setInterval(() => send(live), 1000 * CHUNK_S);
  } else if (message.type === "epoch") {
    live.counts.decoded += 1;
    const [epoch] = message.answer.epochs;
    const mean = epoch.n_averaged > 1 ? `, mean of ${epoch.n_averaged} presentations` : "";
    add(epochView(epoch, message.answer.pictures, `Stimulus ${message.number + 1} (${message.stimulus}) at ${seconds(live, message.sample)}${mean}`));
  } else if (message.type === "refused") {
    live.counts.refused += 1;
    add(element("p", { className: "soft", textContent: `Stimulus ${message.number + 1} at ${seconds(live, message.sample)}: ${message.problem.title}: ${message.problem.detail}.` }));
  } else if (message.type === "summary") {
    live.ended = true;
    live.summary = message;
  } else if (message.type === "problem") {
    live.ended = true;
    showProblem(message.problem);
  }
}

const seconds = (live, sample) => `${(sample / live.recording.start.sfreq).toFixed(1)} s`;

function add(node) {
  $("live-epochs").prepend(node);
  while ($("live-epochs").childElementCount > N_SHOWN) $("live-epochs").lastElementChild.remove();
}

function send(live) {
  const { start, n_samples: total, markers } = live.recording;
  const due = Math.min(total, Math.floor((performance.now() - live.began) / 1000 * start.sfreq));
  if (due <= live.sent) return;
  for (const marker of markers) if (marker.sample >= live.sent && marker.sample < due) {
    live.socket.send(JSON.stringify({ type: "marker", ...marker }));
    live.marks.push(marker.sample);
  }
  const [n, n_channels] = [due - live.sent, start.ch_names.length];
  const chunk = new DataView(new ArrayBuffer(4 * n * n_channels));
  for (let row = 0; row < n_channels; row += 1) for (let i = 0; i < n; i += 1) {
    chunk.setFloat32(4 * (row * n + i), live.recording.data[row * total + live.sent + i], true);
  }
  live.socket.send(chunk.buffer);
  live.sent = due;
  draw(live);
  tell(`${seconds(live, due)} sent, ${live.marks.length} stimuli, ${live.counts.decoded} decoded, ${live.counts.refused} without a picture`);
  if (due === total) { clearInterval(live.timer); live.socket.send(JSON.stringify({ type: "end" })); }
}

function finish(event) {
  const live = running;
  if (!live) return;
  running = null;
  clearInterval(live.timer);
  $("live-go").disabled = false;
  $("live-stop").hidden = true;
  if (live.summary) tell(`ended: ${live.summary.n_stimuli} stimuli, ${live.summary.n_answered} decoded, ${live.summary.n_dropped} dropped, ${live.summary.n_refused} refused`);
  else tell("stopped");
  if (!live.ended) showProblem({ title: "The stream was closed", detail: event.code === 1006 ? "The service did not take the stream: the key may not be for 'stream', or the connection was lost." : event.reason || "The service ended it; start again." });
}

function draw(live) {
  const canvas = $("strip");
  const pen = canvas.getContext("2d");
  const { start, n_samples: total, data } = live.recording;
  const [w, h, width] = [canvas.width, canvas.height, Math.round(STRIP_S * start.sfreq)];
  const first = Math.max(0, live.sent - width);
  const rows = Array.from({ length: Math.min(12, start.ch_names.length) }, (_, k) => Math.floor(k * start.ch_names.length / Math.min(12, start.ch_names.length)));
  pen.clearRect(0, 0, w, h);
  pen.font = "12px system-ui, sans-serif";
  const x = (sample) => 44 + (w - 50) * (sample - first) / width;
  pen.strokeStyle = "#d39b22"; pen.lineWidth = 2;
  for (const mark of live.marks) if (mark >= first) { pen.beginPath(); pen.moveTo(x(mark), 0); pen.lineTo(x(mark), h); pen.stroke(); }
  pen.lineWidth = 1;
  rows.forEach((row, k) => {
    const middle = (k + 0.5) * h / rows.length;
    pen.fillStyle = "#5d6678"; pen.fillText(start.ch_names[row], 4, middle + 4);
    pen.strokeStyle = "#2b5fd9"; pen.beginPath();
    for (let i = first; i < live.sent; i += 1) {
      const y = middle - data[row * total + i] / live.recording.spread * h / rows.length / 4;
      i === first ? pen.moveTo(x(i), y) : pen.lineTo(x(i), y);
    }
    pen.stroke();
  });
}
