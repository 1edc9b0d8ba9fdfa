// Jobs that this browser handed in: their numbers are kept here, everything else by the service until it expires.

import { $, ask, element, key, problemOf, showProblem } from "./page.js";
import { showAnswer } from "./results.js";

const MAX_KEPT = 50;
const UNFINISHED = "not finished when this page last looked";
let follow = () => false;

// How to follow a job that has not ended; returns false while the page is busy with another.
export function whenUnfinished(how) { follow = how; }

function kept() {
  try { return JSON.parse(localStorage.getItem("jobs")) || []; } catch (error) { return []; }
}

function keep(jobs) {
  localStorage.setItem("jobs", JSON.stringify(jobs.slice(0, MAX_KEPT)));
  showHistory();
}

// The name of the key in use, which is no secret: phk_NAME_secret.
const keyName = () => (key() || "").split("_")[1] || "";

export function remember(job, words = UNFINISHED) {
  const before = kept().find((one) => one.id === job.id);
  const by = before ? before.by : keyName();
  const rest = kept().filter((one) => one.id !== job.id);
  keep([{ id: job.id, created: job.created, words, ...(by && { by }) }, ...rest]);
}

const forget = (id) => keep(kept().filter((one) => one.id !== id));

const OTHER = { title: "The job is not there with this key", detail: "It was handed in with another key, or without one; use that to see or delete it." };
const ofOther = (id) => kept().some((one) => one.id === id && (one.by || "") !== keyName());

// What to say of a job that the service does not have; it is forgotten unless it may be that of another key.
export async function missing(id, response) {
  if (ofOther(id)) return OTHER;
  forget(id);
  return problemOf(response);
}

export async function erase(id) {
  const response = await ask(`/v1/jobs/${id}`, { method: "DELETE" });
  if (response.status === 404 && ofOther(id)) throw OTHER;
  if (!response.ok && response.status !== 404) throw await problemOf(response);
  forget(id);
}

export function showHistory() {
  const jobs = kept();
  $("history").hidden = jobs.length === 0;
  $("jobs").replaceChildren(...jobs.map((job) => {
    const when = new Date(job.created).toLocaleString();
    const show = element("button", { className: "plain small", textContent: "Show" });
    const erased = element("button", { className: "danger small", textContent: "Delete" });
    show.setAttribute("aria-label", `Show the result of ${when}`);
    erased.setAttribute("aria-label", `Delete the job of ${when}`);
    show.addEventListener("click", () => recall(job).catch(showProblem));
    erased.addEventListener("click", () => removeOne(job.id, when));
    return element("li", {}, element("span", { textContent: `${when}: ${job.words}` }), show, erased);
  }));
}

async function recall(job) {
  $("problem").hidden = true;
  $("history-words").textContent = "";
  const response = await ask(`/v1/jobs/${job.id}`);
  if (!response.ok) {
    showProblem(response.status === 404 ? await missing(job.id, response) : await problemOf(response));
    return;
  }
  const status = await response.json();
  if (status.result || status.problem) ended(status, status.result, status.problem);
  else if (!follow(status)) $("history-words").textContent = `The job is ${status.status}; another is being followed.`;
}

export function ended(job, result, problem) {
  if (problem) { remember(job, `refused, ${problem.title}`); showProblem(problem); return; }
  const best = Math.max(...result.epochs.map((epoch) => epoch.confidence));
  remember(job, `${result.epochs.length} ${result.epochs.length === 1 ? "epoch" : "epochs"}, highest confidence ${best.toFixed(2)}`);
  showAnswer(result);
}

async function removeOne(id, when) {
  try {
    await erase(id);
    $("history-words").textContent = `The job of ${when} was deleted.`;
    ($("history").hidden ? $("recording") : $("earlier")).focus({ preventScroll: true });
  } catch (problem) {
    showProblem(problem);
  }
}

// another tab of this browser
addEventListener("storage", showHistory);
