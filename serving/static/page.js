// What every part of the page needs: elements, the key, refusals.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function key() {
  return sessionStorage.getItem("key");
}

export function withKey(headers = {}) {
  return key() ? { ...headers, Authorization: `Bearer ${key()}` } : headers;
}

const LOST = { title: "The service was not reached", detail: "See whether it runs, then try again." };

// What a browser says of a lost connection is no sentence.
export async function ask(address, options = {}) {
  try {
    return await fetch(address, { ...options, headers: withKey(options.headers) });
  } catch (error) {
    throw error.name === "AbortError" ? error : LOST;
  }
}

export async function problemOf(response) {
  return response.json().catch(() => ({ detail: `HTTP ${response.status}` }));
}

export function showProblem(details) {
  $("problem").replaceChildren(
    element("p", {}, element("strong", { textContent: details.title || "The request failed" })),
    element("p", { textContent: details.detail || String(details) }),
    element("p", { className: "soft", textContent: details.code ? `code ${details.code}` : "" }));
  $("problem").hidden = false;
  $("problem").scrollIntoView({ block: "nearest" });
}
