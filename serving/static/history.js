// Jobs that this browser handed in: their numbers are kept here, everything else by the service until it expires.

import { $, element, problemOf, showProblem, withKey } from "./page.js";
import { showAnswer } from "./results.js";

const MAX_KEPT = 50;

function kept() {
  try { return JSON.parse(localStorage.getItem("jobs")) || []; } catch (error) { return []; }
}

function keep(jobs) {
  localStorage.setItem("jobs", JSON.stringify(jobs.slice(0, MAX_KEPT)));
  showHistory();
}

export function remember(job, words) {
  const rest = kept().filter((one) => one.id !== job.id);
  keep([{ id: job.id, created: job.created, words }, ...rest]);
}

export const forget = (id) => keep(kept().filter((one) => one.id !== id));

export async function erase(id) {
  const response = await fetch(`/v1/jobs/${id}`, { method: "DELETE", headers: withKey() });
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
    show.addEventListener("click", () => recall(job));
    erased.addEventListener("click", () => removeOne(job.id, when));
    return element("li", {}, element("span", { textContent: `${when}: ${job.words}` }), show, erased);
  }));
}

async function recall(job) {
  $("problem").hidden = true;
  const response = await fetch(`/v1/jobs/${job.id}`, { headers: withKey() });
  if (!response.ok) {
    showProblem(await problemOf(response));
    if (response.status === 404) forget(job.id);
    return;
  }
  const status = await response.json();
  if (status.result) showAnswer(status.result);
  else if (status.problem) showProblem(status.problem);
  else $("history-words").textContent = `The job is ${status.status}.`;
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
