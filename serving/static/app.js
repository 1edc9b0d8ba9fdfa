// Choosing a recording, handing it in, following the work. Jobs where the service keeps them, else one long request.

import { eventsOf } from "./events.js";
import { ended, erase, missing, remember, showHistory, whenUnfinished } from "./history.js";
import { startLive, stopLive } from "./live.js";
import { $, ask, element, key, problemOf, showProblem } from "./page.js";
import { showAnswer } from "./results.js";

const STAGES = { send: "sending the recording", wait: "waiting for its turn", read: "reading the recording", embed: "decoding the signal", generate: "making pictures", encode: "packing the answer" };
const FIELDS = ["images", "seed", "subject", "onsets", "purpose", "bundle"];
const KEY_NOTE = "It is kept until this tab is closed.";
let files = [];
let cancel = null;
let keepsJobs = true;
let bundles = [];
const generated = [...$("pictures").childNodes];

async function describe() {
  try {
    const response = await ask("/v1/bundles");
    $("door").hidden = response.status !== 401 && !key();
    $("key-note").textContent = response.status !== 401 ? `The key is good. ${KEY_NOTE}`
      : key() ? "The service does not know this key." : `This service needs a key. ${KEY_NOTE}`;
    if (response.status === 401) return;
    if (!response.ok) { setTimeout(describe, 3000); return; }
    const service = await response.json();
    fill("purpose", [["", service.purpose_required ? "choose one" : "not named"], ...service.purposes.map((name) => [name, name])]);
    // the default one goes without its number, which may change while the page is open
    fill("bundle", service.bundles.map((one, index) => [index ? one.id : "", `${measures(one)} ${one.id.slice(0, 8)}`]));
    $("bundles").hidden = service.bundles.length === 1;
    $("consent").required = service.consent_required;
    bundles = service.bundles;
    describeBundle();
  } catch (error) { setTimeout(describe, 3000); }
}

const measures = (bundle) => bundle.modalities.map((name) => name.toUpperCase()).join(" and ");

// What was chosen before stays so, if it is still there.
function fill(name, options) {
  const chosen = $(name).value;
  $(name).replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  if (options.some(([value]) => value === chosen)) $(name).value = chosen;
}

function describeBundle() {
  const bundle = bundles[$("bundle").selectedIndex];
  $("about").textContent = `Pictures from ${measures(bundle)} recordings. Bundle ${bundle.id.slice(0, 12)}.`;
  $("statement").textContent = bundle.data_statement;
  $("limit").textContent = `At most ${bundle.limits.max_upload_mb} MB and ${bundle.limits.max_epochs} epochs.`;
  $("images").max = bundle.limits.max_images;
  const what = bundle.pictures === "category" ? "examples of the decoded category" : "the nearest ones of a gallery";
  $("pictures").replaceChildren(...bundle.pictures === "generated" ? generated
    : [element("strong", { textContent: `These pictures are retrieved, not generated: ${what}, not what a person saw.` })]);
  fill("subject", [["", "unknown"], ...[...new Set([...bundle.subjects, ...bundle.calibrated])].map((name) => [name, name])]);
}

function choose(list) {
  files = Array.from(list).slice(0, 2);
  const left = list.length > 2 ? `; ${list.length - 2} more left out, at most two go together` : "";
  $("chosen").textContent = files.map((file) => `${file.name} (${(file.size / 1048576).toFixed(2)} MB)`).join(" + ") + left;
  allow();
}

// One recording at a time.
function allow() {
  $("go").disabled = cancel !== null || files.length === 0;
  $("example").disabled = cancel !== null;
}

function progress(event) {
  $("work").hidden = false;
  const steps = event.stage === "generate" && event.n_steps > 1 ? ` (step ${event.step} of ${event.n_steps})` : "";
  $("stage").textContent = STAGES[event.stage] + steps;
  const base = { send: 0, wait: 0.01, read: 0.02, embed: 0.1, generate: 0.15, encode: 0.98 }[event.stage];
  $("bar").value = event.stage === "generate" ? base + 0.82 * event.step / event.n_steps : base;
}

function look(preview) {
  $("preview").src = `data:image/png;base64,${preview.image}`;
  $("making-words").textContent = `The first picture after step ${preview.step}, not finished.`;
  $("making").hidden = false;
}

function form() {
  const filled = new FormData();
  // the file's own name may hold a person's name: it stays here
  files.forEach((file, index) => filled.append("file", file, `recording-${index}`));
  for (const name of FIELDS) filled.append(name, $(name).value);
  filled.append("average", $("average").checked);
  filled.append("consent", $("consent").checked);
  filled.append("preview", "true");
  return filled;
}

const decode = () => work("send", async (abort) => { if (!keepsJobs || !await asJob(abort)) await asRequest(abort); });

async function work(stage, run) {
  const opener = document.activeElement;
  const abort = new AbortController();
  $("problem").hidden = $("result").hidden = $("signals").hidden = true;
  cancel = () => abort.abort();
  allow();
  $("cancel").hidden = false;
  progress({ stage, step: 0, n_steps: 1 });
  try {
    await run(abort);
  } catch (error) {
    if (error.name === "AbortError") showProblem({ title: "Cancelled", detail: "The work was stopped." });
    else showProblem(error instanceof Error ? { title: "The connection was lost", detail: `No answer arrived (${error.message}); send the recording again.` } : error);
  } finally {
    // what was pressed last goes or is disabled; without this whoever uses keys starts again at the top
    const lost = [document.body, opener, $("cancel")].includes(document.activeElement);
    cancel = null;
    allow();
    $("cancel").hidden = $("work").hidden = $("making").hidden = true;
    if (lost) (opener.isConnected ? opener : $("recording")).focus({ preventScroll: true });
  }
}

// Return false where the service keeps no jobs.
async function asJob(abort) {
  const random = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const response = await ask("/v1/jobs", { method: "POST", body: form(), signal: abort.signal, headers: { "Idempotency-Key": random } });
  if (!response.ok) {
    const details = await problemOf(response);
    if (details.code === "jobs_off") { keepsJobs = false; return false; }
    showProblem(details);
    return true;
  }
  const job = await response.json();
  remember(job);
  await follow(job, abort);
  return true;
}

async function follow(job, abort) {
  cancel = () => { abort.abort(); erase(job.id).catch(showProblem); };
  for (;;) {
    let end = null;
    try {
      end = await watched(job, abort);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      // the service keeps the job, also over a restart
      $("stage").textContent = "the connection was lost; the job is kept by the service, which is asked again every second";
    }
    if (end && end.refused) showProblem(end.refused);
    else if (end) ended(job, end.result, end.problem);
    if (end) return;
    await new Promise((done) => setTimeout(done, 1000));
  }
}

// Return what a job ended with, or why it cannot be followed; null if there is more to wait for.
async function watched(job, abort) {
  const response = await ask(`/v1/jobs/${job.id}/events`, { signal: abort.signal });
  if (response.status === 404) return { refused: await missing(job.id, response) };
  if ([401, 403].includes(response.status)) return { refused: await problemOf(response) };
  if (response.ok) for await (const [name, data] of eventsOf(response.body.getReader())) {
    if (name === "status" && data.status === "queued") progress({ stage: "wait" });
    else if (name === "progress") progress(data);
    else if (name === "preview") look(data);
    else if (name === "result" || name === "problem") return { [name]: data };
  }
  return null;
}

async function asRequest(abort) {
  const response = await ask("/v1/generations", { method: "POST", body: form(), signal: abort.signal, headers: { Accept: "text/event-stream" } });
  if (!response.ok) { showProblem(await problemOf(response)); return; }
  for await (const [name, data] of eventsOf(response.body.getReader())) {
    if (name === "progress") progress(data);
    else { name === "result" ? showAnswer(data) : showProblem(data); return; }
  }
  showProblem({ title: "The connection ended early", detail: "No answer arrived; send the recording again." });
}

const drop = $("drop");
drop.addEventListener("click", () => $("file").click());
drop.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); } });
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
drop.addEventListener("drop", (event) => choose(event.dataTransfer.files));
$("file").addEventListener("change", (event) => choose(event.target.files));
$("go").addEventListener("click", decode);
$("cancel").addEventListener("click", () => cancel && cancel());
$("example").addEventListener("click", async () => {
  try {
    const response = await ask("/example.npz");
    if (!response.ok) { showProblem(await problemOf(response)); return; }
    choose([new File([await response.blob()], "simulated example.npz")]);
  } catch (error) { showProblem(error); return; }
  $("average").checked = true;
  decode();
});
$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  // what cannot be sent in a header is no key
  if (/[^\w-]/.test(given)) { $("key-note").textContent = "This is no key: it holds other characters than keys do."; return; }
  given ? sessionStorage.setItem("key", given) : sessionStorage.removeItem("key");
  $("key").value = "";
  describe();
});
whenUnfinished((job) => { if (cancel) return false; work("wait", (abort) => follow(job, abort)); return true; });
$("bundle").addEventListener("change", describeBundle);
$("live-go").addEventListener("click", startLive);
$("live-stop").addEventListener("click", stopLive);
showHistory();
describe();
